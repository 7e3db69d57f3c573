/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One VM with one guest_memfd, a model of what each page of it should be, i.e.
 * private or shared, and with what contents, and functions to compare the model
 * with what the host and the guest get to see.
 *
 * For tests that use the harness.  It's up to main() to set page_size.
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_FIXTURE_H
#define SELFTEST_KVM_GUEST_MEMFD_FIXTURE_H

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Memory under test.  The lowest 4gb have slot0, the PCI hole, and so on. */
#define TEST_SLOT		10
#define TEST_GPA		((gpa_t)SZ_4G)
#ifndef NR_PAGES
#define NR_PAGES		16
#endif
#ifndef NR_FILE_PAGES
#define NR_FILE_PAGES		NR_PAGES
#endif
#define NR_GUEST_PAGES		(NR_PAGES > 64 ? NR_PAGES : 64)

static size_t page_size;

/* The number of guest faults that KVM resolved by creating a mapping. */
static inline u64 nr_guest_faults(struct kvm_vcpu *vcpu)
{
	return vcpu_get_stat(vcpu, pf_fixed);
}

/*
 * Page contents.  Every word of a page is unique within the file for a given
 * tag, so that misplaced pages are noticed.  Tag '0' stands for a zeroed page.
 */
static inline u64 page_word(u8 tag, u64 page, size_t word)
{
	if (!tag)
		return 0;

	return (u64)tag << 56 | page << 16 | word;
}

static inline void fill_page(u64 *mem, u8 tag, u64 page, size_t size)
{
	size_t i;

	for (i = 0; i < size / sizeof(*mem); i++)
		WRITE_ONCE(mem[i], page_word(tag, page, i));
}

/* Returns the index of the first unexpected word, or -1 if all is well. */
static inline long check_page(u64 *mem, u8 tag, u64 page, size_t size)
{
	size_t i;

	for (i = 0; i < size / sizeof(*mem); i++) {
		if (READ_ONCE(mem[i]) != page_word(tag, page, i))
			return i;
	}
	return -1;
}

/*
 * The guest does what the host asks for, one command per KVM_RUN.
 */
enum guest_op {
	GUEST_FILL,
	GUEST_CHECK,
	GUEST_TOUCH,
	GUEST_CONVERT,
	GUEST_CALL,
};

struct guest_cmd {
	enum guest_op op;
	gva_t gva;
	/* The first page's index, as far as contents are concerned. */
	u64 first;
	u64 nr;
	bool private;
	void (*fn)(void);
	u8 tags[NR_GUEST_PAGES];
};

static struct guest_cmd guest_cmd;

static inline void guest_code(void)
{
	struct guest_cmd *cmd = &guest_cmd;
	u64 i, *mem;
	long bad;

	for (;;) {
		for (i = 0; i < READ_ONCE(cmd->nr); i++) {
			u64 page = cmd->first + i;

			if (cmd->op == GUEST_CALL) {
				cmd->fn();
				break;
			}

			if (cmd->op == GUEST_CONVERT) {
				arch_guest_convert(cmd->gva, cmd->nr * page_size,
						   page_size, cmd->private);
				break;
			}

			mem = (u64 *)(cmd->gva + i * page_size);
			switch (cmd->op) {
			case GUEST_FILL:
				fill_page(mem, cmd->tags[i], page, page_size);
				break;
			case GUEST_CHECK:
				bad = check_page(mem, cmd->tags[i], page, page_size);
				__GUEST_ASSERT(bad < 0,
					       "Guest expected 0x%lx in page %lu, word %ld, got 0x%lx",
					       page_word(cmd->tags[i], page, bad),
					       page, bad, mem[bad]);
				break;
			case GUEST_TOUCH:
				READ_ONCE(*mem);
				break;
			default:
				GUEST_FAIL("Unknown command %u", cmd->op);
			}
		}
		GUEST_SYNC(0);
	}
}

static inline void guest_run(struct kvm_vcpu *vcpu, struct guest_cmd *cmd)
{
	struct kvm_vm *vm = vcpu->vm;
	struct ucall uc;
	bool private;
	gpa_t gpa;
	u64 size;

	TEST_ASSERT(cmd->nr <= NR_GUEST_PAGES, "Too many pages: %lu",
		    cmd->nr);
	write_guest_global(vm, guest_cmd, *cmd);

	for (;;) {
		vcpu_run(vcpu);

		if (arch_is_conversion_exit(vcpu, &gpa, &size, &private)) {
			vm_mem_set_attributes(vm, gpa, size,
					      private ? ATTR_PRIVATE : ATTR_SHARED);
			continue;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			return;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unknown ucall 0x%lx, exit reason %u (%s)",
				  uc.cmd, vcpu->run->exit_reason,
				  exit_reason_str(vcpu->run->exit_reason));
		}
	}
}

static inline void guest_do(struct kvm_vcpu *vcpu, enum guest_op op, gpa_t gpa,
			    u64 first, u64 nr, u8 tag)
{
	struct guest_cmd cmd = {
		.op = op,
		.gva = gpa,
		.first = first,
		.nr = nr,
	};

	memset(cmd.tags, tag, sizeof(cmd.tags));
	guest_run(vcpu, &cmd);
}

static inline void guest_call(struct kvm_vcpu *vcpu, void (*fn)(void))
{
	struct guest_cmd cmd = {
		.op = GUEST_CALL,
		.nr = 1,
		.fn = fn,
	};

	guest_run(vcpu, &cmd);
}

static inline struct kvm_vm *__create_vm(struct kvm_vcpu **vcpu, bool gmem_attributes)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = PRIVATE_VM_TYPE,
	};
	struct kvm_vm *vm = __vm_create(shape, 1, 0);

	if (gmem_attributes)
		vm_enable_gmem_attributes(vm);
	arch_enable_conversion_exits(vm);

	*vcpu = vm_vcpu_add(vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(vm);

	sync_global_to_guest(vm, page_size);
	virt_map(vm, TEST_GPA, TEST_GPA,
		 vm_calc_num_guest_pages(vm->mode, NR_GUEST_PAGES * page_size));
	return vm;
}

static inline struct kvm_vm *create_vm(struct kvm_vcpu **vcpu)
{
	return __create_vm(vcpu, true);
}

static inline u8 *mmap_gmem(int fd, u64 size)
{
	return kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}

enum host_op {
	HOST_READ,
	HOST_WRITE,
	HOST_POISON,
};

static int sigbus_code;

static inline void sigbus_handler(int signum, siginfo_t *info, void *ucontext)
{
	sigbus_code = info->si_code;
	siglongjmp(expect_sigbus_jmpbuf, 1);
}

/* Returns 0, or the code of the SIGBUS that came of it. */
static inline int host_access(u64 *mem, enum host_op op)
{
	struct sigaction sa_old, sa_new = {
		.sa_sigaction = sigbus_handler,
		.sa_flags = SA_SIGINFO,
	};

	sigbus_code = 0;
	sigaction(SIGBUS, &sa_new, &sa_old);
	if (!sigsetjmp(expect_sigbus_jmpbuf, 1)) {
		if (op == HOST_READ)
			READ_ONCE(*mem);
		else if (op == HOST_WRITE)
			WRITE_ONCE(*mem, 0xbad);
		else
			kvm_madvise(mem, page_size, MADV_HWPOISON);
	}
	sigaction(SIGBUS, &sa_old, NULL);
	return sigbus_code;
}

static inline bool host_can_read(void *mem)
{
	return !host_access(mem, HOST_READ);
}

/* Note, clobbers memory if the access works out. */
static inline bool host_can_write(void *mem)
{
	return !host_access(mem, HOST_WRITE);
}

static inline void __assert_private(void *mem, int line)
{
	TEST_ASSERT(!host_can_read(mem),
		    "Line %d: host can read private memory", line);
	TEST_ASSERT(!host_can_write(mem),
		    "Line %d: host can write private memory", line);
}

#define assert_private(mem)		__assert_private(mem, __LINE__)

static inline void __assert_shared(void *mem, u8 tag, u64 page, int line)
{
	u64 *words = mem;
	long bad;

	TEST_ASSERT(host_can_read(mem),
		    "Line %d: host can't read page %lu, which should be shared",
		    line, page);

	bad = check_page(mem, tag, page, page_size);
	if (bad < 0)
		return;

	TEST_FAIL("Line %d: host expected 0x%lx in page %lu, word %ld, got 0x%lx",
		  line, page_word(tag, page, bad), page, bad, words[bad]);
}

#define assert_shared(mem, tag, page)	__assert_shared(mem, tag, page, __LINE__)

static inline u64 host_pfn(void *mem)
{
	u64 pfn;

	TEST_ASSERT(host_can_read(mem), "Host can't read shared memory");
	pfn = pagemap_entry(mem) & PM_PFN_MASK;
	TEST_ASSERT(pfn, "PFNs need CAP_SYS_ADMIN");
	return pfn;
}

static inline void punch_hole(int fd, u64 offset, u64 size)
{
	kvm_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size);
}

/*
 * A reference on one page of memory, held by a pipe.
 */
struct pin {
	int pipe[2];
};

static inline void pin_page(struct pin *pin, void *mem)
{
	struct iovec iov = {
		.iov_base = mem,
		.iov_len = page_size,
	};

	TEST_ASSERT(!pipe(pin->pipe), "pipe() failed");
	TEST_ASSERT_EQ(vmsplice(pin->pipe[1], &iov, 1, 0), page_size);
}

static inline void unpin_page(struct pin *pin)
{
	kvm_close(pin->pipe[0]);
	kvm_close(pin->pipe[1]);
}

/* Verify what a holder of the reference sees, and put the reference. */
static inline void unpin_page_and_check(struct pin *pin, u8 tag, u64 page)
{
	u64 *buf = malloc(page_size);

	TEST_ASSERT(buf, "malloc() failed");
	TEST_ASSERT_EQ(read(pin->pipe[0], buf, page_size), page_size);
	TEST_ASSERT(check_page(buf, tag, page, page_size) < 0,
		    "Unexpected contents in pinned page");
	free(buf);
	unpin_page(pin);
}

static inline int try_convert(int fd, u64 offset, u64 size, u64 attributes)
{
	u64 error_offset;

	return __try_convert(fd, offset, size, attributes, &error_offset);
}

static inline void run_in_child(void (*fn)(void *data), void *data)
{
	int status;
	pid_t pid;

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		fn(data);
		_exit(KSFT_PASS);
	}

	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == KSFT_PASS,
		    "Child failed, wait status = 0x%x", status);
}

static inline struct kvm_random_state new_rng(void)
{
	return new_kvm_random_state(kvm_random_seed);
}

/*
 * One VM with one vCPU and one file, all of it bound to one memslot and mapped
 * in the host, and a model of what each of the file's pages ought to be.  All
 * memory is shared, and zero, to begin with.
 */
FIXTURE(gmem) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	u64 size;
	u8 *mem;
	struct {
		bool private;
		u8 tag;
	} pages[NR_PAGES];
};

FIXTURE_VARIANT(gmem) {
	u64 flags;
	bool slot_has_hva;
};

FIXTURE_VARIANT_ADD(gmem, init_shared) {
	.flags = MMAP_SHARED,
	.slot_has_hva = true,
};

FIXTURE_VARIANT_ADD(gmem, init_private) {
	.flags = MMAP_PRIVATE,
	.slot_has_hva = false,
};

#define gmem_data FIXTURE_DATA(gmem)
#define gmem_variant FIXTURE_VARIANT(gmem)

static inline void setup_file(gmem_data *self, const gmem_variant *variant)
{
	self->size = NR_FILE_PAGES * page_size;
	self->fd = vm_create_guest_memfd(self->vm, self->size, variant->flags);
	self->mem = mmap_gmem(self->fd, self->size);
	memset(self->pages, 0, sizeof(self->pages));

	if (!(variant->flags & GUEST_MEMFD_FLAG_INIT_SHARED))
		gmem_set_shared(self->fd, 0, self->size);
}

static inline int try_bind(gmem_data *self, const gmem_variant *variant)
{
	return __vm_set_user_memory_region2(self->vm, TEST_SLOT,
					    KVM_MEM_GUEST_MEMFD, TEST_GPA, self->size,
					    variant->slot_has_hva ? self->mem : NULL,
					    self->fd, 0);
}

static inline void teardown_file(gmem_data *self)
{
	if (self->mem)
		kvm_munmap(self->mem, self->size);
	if (self->fd >= 0)
		kvm_close(self->fd);
}

FIXTURE_SETUP(gmem)
{
	self->vm = create_vm(&self->vcpu);
	setup_file(self, variant);
	TEST_ASSERT(!try_bind(self, variant), "Failed to bind, errno = %d", errno);
}

FIXTURE_TEARDOWN(gmem)
{
	teardown_file(self);
	kvm_vm_free(self->vm);
}

static inline u8 *page_hva(gmem_data *self, u64 page)
{
	return self->mem + page * page_size;
}

static inline gpa_t page_gpa(u64 page)
{
	return TEST_GPA + page * page_size;
}

static inline void convert(gmem_data *self, u64 page, u64 nr, u64 attributes)
{
	u64 i;
	int r;

	r = try_convert(self->fd, page * page_size, nr * page_size, attributes);
	TEST_ASSERT(!r, "Failed to make pages [%lu, %lu) %s, errno = %d (%s)",
		    page, page + nr,
		    attributes ? "private" : "shared", r, strerror(r));

	for (i = page; i < page + nr; i++)
		self->pages[i].private = attributes;
}

static inline void host_fill(gmem_data *self, u64 page, u64 nr, u8 tag)
{
	u64 i;

	for (i = page; i < page + nr; i++) {
		fill_page((u64 *)page_hva(self, i), tag, i, page_size);
		self->pages[i].tag = tag;
	}
}

static inline void guest_fill(gmem_data *self, u64 page, u64 nr, u8 tag)
{
	u64 i;

	guest_do(self->vcpu, GUEST_FILL, page_gpa(page), page, nr, tag);

	for (i = page; i < page + nr; i++)
		self->pages[i].tag = tag;
}

static inline void guest_touch(gmem_data *self, u64 page, u64 nr)
{
	guest_do(self->vcpu, GUEST_TOUCH, page_gpa(page), page, nr, 0);
}

/* The host gets at, and only at, shared pages, and their contents are right. */
static inline void __check_host(gmem_data *self, int line)
{
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		if (self->pages[i].private)
			TEST_ASSERT(!host_can_read(page_hva(self, i)),
				    "Line %d: host can read page %lu, which should be private",
				    line, i);
		else
			__assert_shared(page_hva(self, i), self->pages[i].tag, i, line);
	}
}

#define check_host(self)		__check_host(self, __LINE__)

/* The guest gets at all pages, and their contents are right. */
static inline void check_guest(gmem_data *self)
{
	struct guest_cmd cmd = {
		.op = GUEST_CHECK,
		.gva = TEST_GPA,
		.nr = NR_PAGES,
	};
	u64 i;

	for (i = 0; i < NR_PAGES; i++)
		cmd.tags[i] = self->pages[i].tag;

	guest_run(self->vcpu, &cmd);
}

static inline void __check_all(gmem_data *self, int line)
{
	__check_host(self, line);
	check_guest(self);
}

#define check_all(self)			__check_all(self, __LINE__)

/* All pages have contents, every other pair of pages is private. */
static inline void make_mixed(gmem_data *self)
{
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		host_fill(self, i, 1, 0x40 + i);
		if (i & 2)
			convert(self, i, 1, ATTR_PRIVATE);
	}
	check_all(self);
}

#endif /* SELFTEST_KVM_GUEST_MEMFD_FIXTURE_H */
