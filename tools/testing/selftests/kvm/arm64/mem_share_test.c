// SPDX-License-Identifier: GPL-2.0-only
/*
 * Serve a guest's calls to share memory, and to stop sharing it, in userspace.
 *
 * Guests of pKVM find MEM_SHARE and MEM_UNSHARE in the bitmap of KVM's vendor
 * specific hypercalls, ask MEMINFO how much memory one call is about, and go
 * ahead.  KVM doesn't implement these calls for any other VM, but lets the VMM
 * filter SMCCC calls, i.e. implement calls by itself.  A VMM whose VM has private
 * memory can thus serve guests that know nothing but pKVM: forward the calls to
 * userspace, add them to the bitmap, and convert memory in place.
 */
#include <linux/arm-smccc.h>
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define SHARE		ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID
#define UNSHARE		ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID
#define MEMINFO		ARM_SMCCC_VENDOR_HYP_KVM_HYP_MEMINFO_FUNC_ID
#define FEATURES	ARM_SMCCC_VENDOR_HYP_KVM_FEATURES_FUNC_ID
#define FEATURE_BITS	(BIT(ARM_SMCCC_KVM_FUNC_HYP_MEMINFO) |	\
			 BIT(ARM_SMCCC_KVM_FUNC_MEM_SHARE) |	\
			 BIT(ARM_SMCCC_KVM_FUNC_MEM_UNSHARE))

#define TEST_SLOT	10
#define TEST_GPA	((gpa_t)SZ_4G)
#define NR_PAGES	4

static size_t page_size;
static bool has_sw_protected;
static bool has_protected;

/* What the guest sees of the hypercalls. */
static void guest_call(u32 func_id, u64 arg, struct arm_smccc_res *res)
{
	smccc_hvc(func_id, arg, 0, 0, 0, 0, 0, 0, res);
}

static long guest_call1(u32 func_id, u64 arg)
{
	struct arm_smccc_res res;

	guest_call(func_id, arg, &res);
	return res.a0;
}

static void guest_check_uid(void)
{
	struct arm_smccc_res res;

	guest_call(ARM_SMCCC_VENDOR_HYP_CALL_UID_FUNC_ID, 0, &res);
	GUEST_ASSERT_EQ(res.a0, ARM_SMCCC_VENDOR_HYP_UID_KVM_REG_0);
	GUEST_ASSERT_EQ(res.a1, ARM_SMCCC_VENDOR_HYP_UID_KVM_REG_1);
	GUEST_ASSERT_EQ(res.a2, ARM_SMCCC_VENDOR_HYP_UID_KVM_REG_2);
	GUEST_ASSERT_EQ(res.a3, ARM_SMCCC_VENDOR_HYP_UID_KVM_REG_3);
}

FIXTURE(mem_share) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *mem;
	int fd;
};

FIXTURE_SETUP(mem_share)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_VM_TYPE_ARM_SW_PROTECTED,
	};

	if (!has_sw_protected)
		SKIP(return, "KVM doesn't support software-protected VMs");

	self->vm = __vm_create(shape, 1, 0);
	self->vcpu = vm_vcpu_add(self->vm, 0, NULL);
	kvm_arch_vm_finalize_vcpus(self->vm);

	self->fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size,
					 GUEST_MEMFD_FLAG_MMAP);
	self->mem = kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE,
			     MAP_SHARED, self->fd);
	vm_set_user_memory_region2(self->vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD,
				   TEST_GPA, NR_PAGES * page_size, self->mem,
				   self->fd, 0);

	virt_map(self->vm, TEST_GPA, TEST_GPA,
		 vm_calc_num_guest_pages(self->vm->mode, NR_PAGES * page_size));
	sync_global_to_guest(self->vm, page_size);
}

FIXTURE_TEARDOWN(mem_share)
{
	kvm_munmap(self->mem, NR_PAGES * page_size);
	kvm_close(self->fd);
	kvm_vm_free(self->vm);
}

/* Take over what guests need, and nothing else. */
static void forward_calls(struct kvm_vm *vm)
{
	set_smccc_filter(vm, FEATURES, 1, KVM_SMCCC_FILTER_FWD_TO_USER);
	set_smccc_filter(vm, MEMINFO, 3, KVM_SMCCC_FILTER_FWD_TO_USER);
}

/* Convert the granule at @gpa, and say what the guest will be told. */
static long serve_convert(struct kvm_vm *vm, int fd, gpa_t gpa, u64 attributes)
{
	if (gpa % page_size || gpa < TEST_GPA ||
	    gpa >= TEST_GPA + NR_PAGES * page_size)
		return SMCCC_RET_INVALID_PARAMETER;

	if (__gmem_set_memory_attributes(fd, gpa - TEST_GPA, page_size,
					 attributes, NULL)) {
		TEST_ASSERT_EQ(errno, EAGAIN);
		return SMCCC_RET_INVALID_PARAMETER;
	}

	return SMCCC_RET_SUCCESS;
}

static void serve(struct kvm_vcpu *vcpu, int fd)
{
	u64 arg = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.regs[1]));
	u64 ret[4] = {};
	int i;

	TEST_ASSERT(!(vcpu->run->hypercall.flags & KVM_HYPERCALL_EXIT_SMC),
		    "The guest used HVC, not SMC");

	switch (vcpu->run->hypercall.nr) {
	case FEATURES:
		/* Whatever KVM has, KVM still serves. */
		ret[0] = vcpu_get_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP) |
			 FEATURE_BITS;
		ret[2] = vcpu_get_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP_2);
		break;
	case MEMINFO:
		ret[0] = page_size;
		break;
	case SHARE:
		ret[0] = serve_convert(vcpu->vm, fd, arg, 0);
		break;
	case UNSHARE:
		ret[0] = serve_convert(vcpu->vm, fd, arg,
				       KVM_MEMORY_ATTRIBUTE_PRIVATE);
		break;
	default:
		TEST_FAIL("Unexpected hypercall 0x%llx", vcpu->run->hypercall.nr);
	}

	for (i = 0; i < ARRAY_SIZE(ret); i++)
		vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.regs[i]), ret[i]);
}

/* Run until the guest has something to say; returns the number of calls served. */
static int run(struct kvm_vcpu *vcpu, int fd, u64 expected_cmd, u64 stage)
{
	struct ucall uc;
	int nr = 0;
	u64 cmd;

	for (;; nr++) {
		vcpu_run(vcpu);
		if (vcpu->run->exit_reason != KVM_EXIT_HYPERCALL)
			break;
		serve(vcpu, fd);
	}

	cmd = get_ucall(vcpu, &uc);
	if (cmd == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(cmd, expected_cmd);
	if (cmd == UCALL_SYNC)
		TEST_ASSERT_EQ(uc.args[1], stage);
	return nr;
}

static void assert_private(u8 *mem)
{
	TEST_EXPECT_SIGBUS(READ_ONCE(*mem));
	TEST_EXPECT_SIGBUS(WRITE_ONCE(*mem, 0xbd));
}

static void guest_finds_nothing(void)
{
	struct arm_smccc_res res;

	guest_check_uid();
	guest_call(FEATURES, 0, &res);
	GUEST_ASSERT(res.a0 & BIT(ARM_SMCCC_KVM_FUNC_FEATURES));
	GUEST_ASSERT_EQ(res.a0 & FEATURE_BITS, 0);

	GUEST_ASSERT_EQ(guest_call1(MEMINFO, 0), SMCCC_RET_NOT_SUPPORTED);
	GUEST_ASSERT_EQ(guest_call1(SHARE, TEST_GPA), SMCCC_RET_NOT_SUPPORTED);
	GUEST_ASSERT_EQ(guest_call1(UNSHARE, TEST_GPA), SMCCC_RET_NOT_SUPPORTED);
	GUEST_DONE();
}

/* KVM doesn't offer, or implement, the calls by itself. */
TEST_F(mem_share, not_served)
{
	vcpu_arch_set_entry_point(self->vcpu, guest_finds_nothing);
	TEST_ASSERT_EQ(run(self->vcpu, self->fd, UCALL_DONE, 0), 0);
	assert_private(self->mem);
}

static void guest_finds_calls(void)
{
	struct arm_smccc_res res;

	guest_check_uid();
	guest_call(FEATURES, 0, &res);
	GUEST_ASSERT(res.a0 & BIT(ARM_SMCCC_KVM_FUNC_FEATURES));
	GUEST_ASSERT_EQ(res.a0 & FEATURE_BITS, FEATURE_BITS);
	GUEST_ASSERT(res.a0 & BIT(ARM_SMCCC_KVM_FUNC_PTP));
	GUEST_ASSERT_EQ(guest_call1(MEMINFO, 0), page_size);

	/* What isn't forwarded is KVM's. */
	guest_call(ARM_SMCCC_VENDOR_HYP_KVM_PTP_FUNC_ID, 2, &res);
	GUEST_ASSERT_EQ((int)res.a0, SMCCC_RET_NOT_SUPPORTED);
	GUEST_DONE();
}

/* The VMM adds the calls, without taking any away. */
TEST_F(mem_share, discovery)
{
	forward_calls(self->vm);
	vcpu_arch_set_entry_point(self->vcpu, guest_finds_calls);
	TEST_ASSERT_EQ(run(self->vcpu, self->fd, UCALL_DONE, 0), 2);
}

static void guest_shares(void)
{
	u8 *mem = (u8 *)TEST_GPA;
	int i;

	for (i = 0; i < NR_PAGES; i++)
		WRITE_ONCE(mem[i * page_size], 0x10 + i);
	GUEST_SYNC(0);

	for (i = 1; i < NR_PAGES; i += 2)
		GUEST_ASSERT_EQ(guest_call1(SHARE, TEST_GPA + i * page_size),
				SMCCC_RET_SUCCESS);
	GUEST_SYNC(1);

	for (i = 0; i < NR_PAGES; i++)
		GUEST_ASSERT_EQ(READ_ONCE(mem[i * page_size]),
				i & 1 ? 0x20 + i : 0x10 + i);
	/* Once more is fine, at least with this VMM. */
	GUEST_ASSERT_EQ(guest_call1(SHARE, TEST_GPA + page_size), SMCCC_RET_SUCCESS);
	for (i = 1; i < NR_PAGES; i += 2)
		GUEST_ASSERT_EQ(guest_call1(UNSHARE, TEST_GPA + i * page_size),
				SMCCC_RET_SUCCESS);
	GUEST_SYNC(2);

	for (i = 0; i < NR_PAGES; i++)
		GUEST_ASSERT_EQ(READ_ONCE(mem[i * page_size]),
				i & 1 ? 0x20 + i : 0x10 + i);
	GUEST_DONE();
}

/* The host gets to see what the guest shares, and nothing else, in place. */
TEST_F(mem_share, in_place)
{
	int i;

	forward_calls(self->vm);
	vcpu_arch_set_entry_point(self->vcpu, guest_shares);

	TEST_ASSERT_EQ(run(self->vcpu, self->fd, UCALL_SYNC, 0), 0);
	for (i = 0; i < NR_PAGES; i++)
		assert_private(self->mem + i * page_size);

	TEST_ASSERT_EQ(run(self->vcpu, self->fd, UCALL_SYNC, 1), NR_PAGES / 2);
	for (i = 0; i < NR_PAGES; i++) {
		u8 *mem = self->mem + i * page_size;

		if (!(i & 1)) {
			assert_private(mem);
			continue;
		}
		TEST_ASSERT_EQ(READ_ONCE(*mem), 0x10 + i);
		WRITE_ONCE(*mem, 0x20 + i);
	}

	TEST_ASSERT_EQ(run(self->vcpu, self->fd, UCALL_SYNC, 2), NR_PAGES / 2 + 1);
	for (i = 0; i < NR_PAGES; i++)
		assert_private(self->mem + i * page_size);

	TEST_ASSERT_EQ(run(self->vcpu, self->fd, UCALL_DONE, 0), 0);
}

static void guest_is_refused(void)
{
	const gpa_t end = TEST_GPA + NR_PAGES * page_size;

	/* Not a granule, and not memory. */
	GUEST_ASSERT_EQ(guest_call1(SHARE, TEST_GPA + 8), SMCCC_RET_INVALID_PARAMETER);
	GUEST_ASSERT_EQ(guest_call1(SHARE, end), SMCCC_RET_INVALID_PARAMETER);
	GUEST_ASSERT_EQ(guest_call1(UNSHARE, end), SMCCC_RET_INVALID_PARAMETER);
	GUEST_ASSERT_EQ(guest_call1(SHARE, -page_size), SMCCC_RET_INVALID_PARAMETER);

	GUEST_ASSERT_EQ(guest_call1(SHARE, TEST_GPA), SMCCC_RET_SUCCESS);
	GUEST_SYNC(0);
	GUEST_ASSERT_EQ(guest_call1(UNSHARE, TEST_GPA), SMCCC_RET_INVALID_PARAMETER);
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(guest_call1(UNSHARE, TEST_GPA), SMCCC_RET_SUCCESS);
	GUEST_DONE();
}

/* The guest learns that it can't have a page back while the host uses it. */
TEST_F(mem_share, refused)
{
	struct iovec iov = { .iov_base = self->mem, .iov_len = page_size };
	int fds[2];

	forward_calls(self->vm);
	vcpu_arch_set_entry_point(self->vcpu, guest_is_refused);

	run(self->vcpu, self->fd, UCALL_SYNC, 0);
	WRITE_ONCE(*self->mem, 0x5a);
	TEST_ASSERT(!pipe(fds), "pipe() failed");
	TEST_ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), page_size);

	run(self->vcpu, self->fd, UCALL_SYNC, 1);
	TEST_ASSERT_EQ(READ_ONCE(*self->mem), 0x5a);

	kvm_close(fds[0]);
	kvm_close(fds[1]);
	run(self->vcpu, self->fd, UCALL_DONE, 0);
	assert_private(self->mem);
}

/* A function that returns @ret: "mov w0, #ret; ret". */
static void write_code(u32 *code, u16 ret)
{
	WRITE_ONCE(code[0], 0x52800000 | ret << 5);
	WRITE_ONCE(code[1], 0xd65f03c0);
	__builtin___clear_cache((char *)code, (char *)(code + 2));
}

static void guest_executes(void)
{
	u64 (*fn)(void) = (void *)TEST_GPA;
	u32 *code = (void *)TEST_GPA;

	/* Write, and only then execute: two faults if the caches want care. */
	write_code(code, 1);
	GUEST_ASSERT_EQ(fn(), 1);
	GUEST_ASSERT_EQ(guest_call1(SHARE, TEST_GPA), SMCCC_RET_SUCCESS);
	GUEST_SYNC(0);

	GUEST_ASSERT_EQ(fn(), 2);
	write_code(code, 3);
	GUEST_ASSERT_EQ(fn(), 3);
	GUEST_ASSERT_EQ(guest_call1(UNSHARE, TEST_GPA), SMCCC_RET_SUCCESS);
	GUEST_SYNC(1);

	GUEST_ASSERT_EQ(fn(), 3);
	write_code(code, 4);
	GUEST_ASSERT_EQ(fn(), 4);
	GUEST_DONE();
}

/* The guest executes what is in the page, no matter who wrote it, and when. */
TEST_F(mem_share, execute)
{
	forward_calls(self->vm);
	vcpu_arch_set_entry_point(self->vcpu, guest_executes);

	run(self->vcpu, self->fd, UCALL_SYNC, 0);
	write_code((u32 *)self->mem, 2);
	run(self->vcpu, self->fd, UCALL_SYNC, 1);
	assert_private(self->mem);
	run(self->vcpu, self->fd, UCALL_DONE, 0);
}

/* Neither pKVM's type, nor bits that don't mean anything, can be combined with it. */
TEST_F(mem_share, vm_type)
{
	const unsigned long types[] = {
		KVM_VM_TYPE_ARM_SW_PROTECTED | KVM_VM_TYPE_ARM_PROTECTED,
		KVM_VM_TYPE_ARM_SW_PROTECTED | BIT(29),
		KVM_VM_TYPE_ARM_SW_PROTECTED | BIT(8),
	};
	int i, r;

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		r = __kvm_ioctl(self->vm->kvm_fd, KVM_CREATE_VM, (void *)types[i]);
		TEST_ASSERT(r == -1 && errno == EINVAL,
			    "Type 0x%lx: r = %d, errno = %d", types[i], r, errno);
	}
}

static int enable_mte(struct kvm_vm *vm)
{
	struct kvm_enable_cap mte = { .cap = KVM_CAP_ARM_MTE };

	return __vm_ioctl(vm, KVM_ENABLE_CAP, &mte);
}

/* Bind without a mapping, so that there's no VMA that could be to blame. */
static int bind_gmem(struct kvm_vm *vm, int fd)
{
	return __vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD,
					    TEST_GPA, page_size, NULL, fd, 0);
}

/* Private memory doesn't go with MTE, nor does any guest_memfd, in either order. */
TEST_F(mem_share, mte)
{
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_vm *vm = vm_create_barebones();
	int fd, r;

	if (!vm_check_cap(vm, KVM_CAP_ARM_MTE)) {
		kvm_vm_free(vm);
		SKIP(return, "Needs CONFIG_ARM64_MTE and hardware with it");
	}

	TEST_ASSERT(!enable_mte(vm), "An ordinary VM can't have MTE, errno = %d", errno);
	fd = vm_create_guest_memfd(vm, page_size, flags);
	r = bind_gmem(vm, fd);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);
	kvm_close(fd);
	kvm_vm_free(vm);

	vm = vm_create_barebones();
	fd = vm_create_guest_memfd(vm, page_size, flags);
	TEST_ASSERT(!bind_gmem(vm, fd), "Failed to bind, errno = %d", errno);
	r = enable_mte(vm);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);
	kvm_close(fd);
	kvm_vm_free(vm);

	/* Not even before there's a vCPU or a memslot that could be to blame. */
	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_SW_PROTECTED);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_ARM_MTE), 0);
	r = enable_mte(vm);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);
	kvm_vm_free(vm);
}

static int init_vcpu_with_el2(struct kvm_vm *vm)
{
	struct kvm_vcpu *vcpu = __vm_vcpu_add(vm, 0);
	struct kvm_vcpu_init init;

	vm_ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init);
	init.features[0] |= BIT(KVM_ARM_VCPU_HAS_EL2);
	return __vcpu_ioctl(vcpu, KVM_ARM_VCPU_INIT, &init);
}

/* Private memory doesn't go with nested virtualization. */
TEST_F(mem_share, nested)
{
	struct kvm_vm *vm = vm_create_barebones();
	int r;

	if (!vm_check_cap(vm, KVM_CAP_ARM_EL2)) {
		kvm_vm_free(vm);
		SKIP(return, "Needs kvm-arm.mode=nested and hardware with FEAT_NV2");
	}

	TEST_ASSERT(!init_vcpu_with_el2(vm),
		    "An ordinary VM can't have EL2, errno = %d", errno);
	kvm_vm_free(vm);

	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_SW_PROTECTED);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_ARM_EL2), 0);
	r = init_vcpu_with_el2(vm);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);
	kvm_vm_free(vm);
}

static void test_no_private_memory(unsigned long type)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
		.args = { KVM_MEMORY_ATTRIBUTE_PRIVATE },
	};
	struct kvm_vm *vm = vm_create_barebones_type(type);
	int fd, r;
	u8 *mem;

	TEST_ASSERT_EQ(vm_check_cap(vm, cap.cap), 0);
	r = __vm_ioctl(vm, KVM_ENABLE_CAP, &cap);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);

	fd = vm_create_guest_memfd(vm, page_size, GUEST_MEMFD_FLAG_MMAP |
						  GUEST_MEMFD_FLAG_INIT_SHARED);
	mem = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	WRITE_ONCE(*mem, 0x77);
	r = __gmem_set_memory_attributes(fd, 0, page_size,
					 KVM_MEMORY_ATTRIBUTE_PRIVATE, NULL);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);
	TEST_ASSERT_EQ(READ_ONCE(*mem), 0x77);

	kvm_munmap(mem, page_size);
	kvm_close(fd);
	kvm_vm_free(vm);
}

/* Other VMs don't have private memory, also if KVM is pKVM. */
TEST(ordinary_vm)
{
	test_no_private_memory(0);
}

/* Nor do pKVM's protected VMs, not in guest_memfd. */
TEST(pkvm_protected_vm)
{
	if (!has_protected)
		SKIP(return, "Needs pKVM");

	test_no_private_memory(KVM_VM_TYPE_ARM_PROTECTED);
}

/*
 * What a protected VM gets, for good, is the memory at userspace_addr, which can't be
 * guest_memfd's: memslots are one or the other.
 */
TEST(pkvm_memslot)
{
	struct kvm_vm *vm;
	u8 *mem, *other;
	int fd, r;

	if (!has_protected)
		SKIP(return, "Needs pKVM");

	other = kvm_mmap(page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	fd = vm_create_guest_memfd(vm, page_size, GUEST_MEMFD_FLAG_MMAP |
						  GUEST_MEMFD_FLAG_INIT_SHARED);
	mem = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	r = __vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA,
					 page_size, mem, fd, 0);
	TEST_ASSERT(r == -1 && errno == EPERM, "r = %d, errno = %d", r, errno);
	r = __vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA,
					 page_size, other, fd, 0);
	TEST_ASSERT(r == -1 && errno == EPERM, "r = %d, errno = %d", r, errno);
	vm_set_user_memory_region2(vm, TEST_SLOT, 0, TEST_GPA, page_size, other, -1, 0);

	kvm_munmap(mem, page_size);
	kvm_close(fd);
	kvm_vm_free(vm);

	/* KVM shares memory with other VMs, that may be guest_memfd's. */
	vm = vm_create_barebones();
	fd = vm_create_guest_memfd(vm, page_size, GUEST_MEMFD_FLAG_MMAP |
						  GUEST_MEMFD_FLAG_INIT_SHARED);
	vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA,
				   page_size, other, fd, 0);
	kvm_close(fd);
	kvm_vm_free(vm);
	kvm_munmap(other, page_size);
}

/* pKVM owns stage-2, i.e. KVM can't take pages away from the guest by itself. */
TEST(pkvm_refuses)
{
	int kvm_fd, r;

	if (!has_protected)
		SKIP(return, "Needs pKVM");

	kvm_fd = open_kvm_dev_path_or_exit();
	r = __kvm_ioctl(kvm_fd, KVM_CREATE_VM, (void *)KVM_VM_TYPE_ARM_SW_PROTECTED);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);
	kvm_close(kvm_fd);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	has_sw_protected = arch_has_private_vms();
	has_protected = can_create_vm(KVM_VM_TYPE_ARM_PROTECTED);

	return test_harness_run(argc, argv);
}
