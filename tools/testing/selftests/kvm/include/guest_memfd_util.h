/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests that convert guest_memfd memory between private and shared have in
 * common: the VM type that has private memory on hardware that does not do
 * confidential VMs, how a guest asks for a conversion, how to do it, and how to
 * look at the result.
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_UTIL_H
#define SELFTEST_KVM_GUEST_MEMFD_UTIL_H

#ifdef __aarch64__
#include <linux/arm-smccc.h>
#endif
#include <linux/kvm_para.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "numaif.h"
#include "processor.h"
#include "test_util.h"

#define ATTR_PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define ATTR_SHARED		0ull

#define MMAP_SHARED		(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
#define MMAP_PRIVATE		GUEST_MEMFD_FLAG_MMAP

/* A value that KVM can't legitimately write to error_offset. */
#define ERROR_OFFSET_CANARY	0xdead0000beef0001ull

#ifdef __x86_64__
#define PRIVATE_VM_TYPE		KVM_X86_SW_PROTECTED_VM

/* Whether memory fault exits tell private from shared. */
#define FAULT_EXITS_TELL_PRIVATE	true

static inline bool arch_has_private_vms(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(PRIVATE_VM_TYPE);
}

static inline void arch_enable_conversion_exits(struct kvm_vm *vm)
{
	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
}

/* The @granule, i.e. the host's page size, is not known to the guest. */
static inline void arch_guest_convert(gpa_t gpa, u64 size, u64 granule,
				      bool private)
{
	kvm_hypercall_map_gpa_range(gpa, size,
				    private ? KVM_MAP_GPA_RANGE_ENCRYPTED :
					      KVM_MAP_GPA_RANGE_DECRYPTED);
}

/* Returns true if the vCPU exited to ask for a conversion. */
static inline bool arch_is_conversion_exit(struct kvm_vcpu *vcpu, gpa_t *gpa,
					   u64 *size, bool *private)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason != KVM_EXIT_HYPERCALL)
		return false;

	TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	*gpa = run->hypercall.args[0];
	*size = run->hypercall.args[1] * PAGE_SIZE;
	*private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;
	run->hypercall.ret = 0;
	return true;
}
#elif defined(__aarch64__)
#define PRIVATE_VM_TYPE		KVM_VM_TYPE_ARM_SW_PROTECTED

/* Stage-2 knows of one kind of access only. */
#define FAULT_EXITS_TELL_PRIVATE	false

/* No capability tells which types there are. */
static inline bool can_create_vm(unsigned long type)
{
	int kvm_fd = open_kvm_dev_path_or_exit();
	int vm_fd = __kvm_ioctl(kvm_fd, KVM_CREATE_VM, (void *)type);

	if (vm_fd >= 0)
		kvm_close(vm_fd);
	kvm_close(kvm_fd);
	return vm_fd >= 0;
}

static inline bool arch_has_private_vms(void)
{
	return can_create_vm(PRIVATE_VM_TYPE);
}

static inline void arch_enable_conversion_exits(struct kvm_vm *vm)
{
	kvm_static_assert(ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID ==
			  ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID + 1);
	set_smccc_filter(vm, ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID, 2,
			 KVM_SMCCC_FILTER_FWD_TO_USER);
}

/* Ask for one @granule at a time, as guests of pKVM do. */
static inline void arch_guest_convert(gpa_t gpa, u64 size, u64 granule,
				      bool private)
{
	struct arm_smccc_res res;
	gpa_t end = gpa + size;

	for (; gpa < end; gpa += granule) {
		smccc_hvc(private ? ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID :
				    ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID,
			  gpa, 0, 0, 0, 0, 0, 0, &res);
		GUEST_ASSERT_EQ(res.a0, SMCCC_RET_SUCCESS);
	}
}

/* Returns true if the vCPU exited to ask for a conversion. */
static inline bool arch_is_conversion_exit(struct kvm_vcpu *vcpu, gpa_t *gpa,
					   u64 *size, bool *private)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason != KVM_EXIT_HYPERCALL)
		return false;

	*private = run->hypercall.nr == ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID;
	TEST_ASSERT(*private ||
		    run->hypercall.nr == ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID,
		    "Unexpected hypercall 0x%llx", run->hypercall.nr);
	*gpa = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.regs[1]));
	*size = getpagesize();
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.regs[0]), SMCCC_RET_SUCCESS);
	return true;
}
#else
#error "Tell the test how to run guests with private memory"
#endif

/*
 * Returns the errno of a conversion, '0' on success.  Verify that error_offset
 * is written only if the error says so, and then never lies below the range.
 */
static inline int __try_convert(int fd, u64 offset, u64 size, u64 attributes,
				u64 *error_offset)
{
	int r, err;

	*error_offset = ERROR_OFFSET_CANARY;
	r = __gmem_set_memory_attributes(fd, offset, size, attributes,
					 error_offset);
	err = r ? errno : 0;
	TEST_ASSERT(!r || r == -1, "ioctl() returned %d", r);

	if (err == EAGAIN)
		TEST_ASSERT(*error_offset >= offset &&
			    *error_offset < offset + size &&
			    !(*error_offset % getpagesize()),
			    "Bad error_offset 0x%lx", *error_offset);
	else if (err == ENOMEM)
		TEST_ASSERT_EQ(*error_offset, offset);
	else
		TEST_ASSERT_EQ(*error_offset, ERROR_OFFSET_CANARY);

	return err;
}

#define PM_PRESENT	BIT_ULL(63)
#define PM_PFN_MASK	GENMASK_ULL(54, 0)

static inline u64 pagemap_entry(void *mem)
{
	u64 entry;
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	TEST_ASSERT(fd >= 0, "Failed to open pagemap");
	TEST_ASSERT_EQ(pread(fd, &entry, sizeof(entry),
			     (unsigned long)mem / getpagesize() * sizeof(entry)),
		       sizeof(entry));
	kvm_close(fd);
	return entry;
}

/* Returns whether or not the page has a PTE, without changing that. */
static inline bool host_is_mapped(void *mem)
{
	return pagemap_entry(mem) & PM_PRESENT;
}

struct gmem_info {
	unsigned long long size, flags, populated, private, ranges;
	unsigned long long converted, refused;
};

static inline int gmem_read_field(const char *line, const char *name,
				  unsigned long long *val)
{
	const size_t len = strlen(name);
	char *end;

	if (strncmp(line, name, len) || line[len] != ':' || line[len + 1] != '\t')
		return 0;

	*val = strtoull(line + len + 2, &end, 0);
	TEST_ASSERT(*end == '\n', "Unexpected %s", line);
	return 1;
}

/* Of a file that another process has open, too. */
static inline void __gmem_read_info(pid_t pid, int fd, struct gmem_info *info)
{
	char path[64], line[128];
	int nr = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd);
	f = fopen(path, "r");
	TEST_ASSERT(f, "Failed to open %s", path);

	while (fgets(line, sizeof(line), f)) {
		nr += gmem_read_field(line, "gmem-size", &info->size);
		nr += gmem_read_field(line, "gmem-flags", &info->flags);
		nr += gmem_read_field(line, "gmem-populated", &info->populated);
		nr += gmem_read_field(line, "gmem-private", &info->private);
		nr += gmem_read_field(line, "gmem-ranges", &info->ranges);
		nr += gmem_read_field(line, "gmem-converted", &info->converted);
		nr += gmem_read_field(line, "gmem-refused", &info->refused);
	}
	fclose(f);

	TEST_ASSERT(nr == 7, "Found %d of 7 fields in %s", nr, path);
}

static inline void gmem_read_info(int fd, struct gmem_info *info)
{
	__gmem_read_info(getpid(), fd, info);
}

/* Pass a file descriptor to another process, as a VMM does to its backends. */
static inline void send_fd(int sock, int fd)
{
	char buf[CMSG_SPACE(sizeof(int))] = {};
	struct iovec iov = { .iov_base = buf, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = buf,
		.msg_controllen = sizeof(buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	TEST_ASSERT_EQ(sendmsg(sock, &msg, 0), 1);
}

static inline int receive_fd(int sock)
{
	char buf[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = buf,
		.msg_controllen = sizeof(buf),
	};
	struct cmsghdr *cmsg;
	int fd;

	TEST_ASSERT_EQ(recvmsg(sock, &msg, 0), 1);
	cmsg = CMSG_FIRSTHDR(&msg);
	TEST_ASSERT(cmsg && cmsg->cmsg_type == SCM_RIGHTS,
		    "There was no file descriptor");
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

/* The parameter exists if, and only if, VM-scoped tracking is built in. */
#define VM_SCOPED_PARAM		"/sys/module/kvm/parameters/vm_memory_attributes"

static inline bool has_vm_scoped(void)
{
	return !access(VM_SCOPED_PARAM, F_OK);
}

static pid_t gmem_main_pid;

/*
 * Test cases end with _exit().  Whatever calls exit() in a test case, e.g. a
 * failed assertion, is a failure, even if the library thinks it's a reason to
 * skip, e.g. because errno happens to be EACCES.
 */
static inline void gmem_fail_on_exit(void)
{
	if (getpid() == gmem_main_pid)
		return;

	fflush(NULL);
	_exit(KSFT_FAIL);
}

/*
 * Snatch "-s seed" from the command line, the rest is for the harness.  The
 * library has picked, and printed, a seed already.
 */
static inline void gmem_parse_seed(int *argc, char *argv[])
{
	char *end;
	int i, j;

	for (i = 1; i < *argc; i++) {
		if (strcmp(argv[i], "-s"))
			continue;

		TEST_ASSERT(i + 1 < *argc, "-s needs a seed for random tests");
		kvm_random_seed = strtoul(argv[i + 1], &end, 0);
		TEST_ASSERT(!*end && end != argv[i + 1] &&
			    kvm_random_seed % INT32_MAX,
			    "Invalid seed '%s'", argv[i + 1]);

		pr_info("Overriding random seed: 0x%x\n", kvm_random_seed);

		for (j = i; j + 2 <= *argc; j++)
			argv[j] = argv[j + 2];
		*argc -= 2;
		i--;
	}
}

/* What main() of a test that uses the harness has to do before anything else. */
static inline void gmem_test_init(int *argc, char *argv[])
{
	gmem_main_pid = getpid();
	gmem_parse_seed(argc, argv);

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(arch_has_private_vms());
	__TEST_REQUIRE(has_vm_scoped() || kvm_has_gmem_attributes(),
		       "KVM doesn't support attributes tracked in guest_memfd");

	/*
	 * Otherwise, NUMA balancing unmaps memory from time to time, also from the
	 * guest, to see who accesses it.
	 */
	set_mempolicy(MPOL_LOCAL, NULL, 0);

	atexit(gmem_fail_on_exit);
}

#endif /* SELFTEST_KVM_GUEST_MEMFD_UTIL_H */
