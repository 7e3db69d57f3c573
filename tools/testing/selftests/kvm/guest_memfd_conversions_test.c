// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for converting guest_memfd memory between private and shared, in place,
 * with KVM_SET_MEMORY_ATTRIBUTES2.
 *
 * What KVM promises to users of the ioctl, and what the tests refer to by
 * number:
 *
 *  1. All or nothing.  A call that fails has changed no attribute and no
 *     contents anywhere in the range.
 *  4. In place.  The physical page stays and, for software-protected VMs, so do
 *     its contents, in both directions, however often.
 *  5. Nothing leaks.  A page is zero the first time anyone sees it.
 *  6. Host access to a private page is SIGBUS for direct access, and fails
 *     through the kernel, in every process that maps it, also after fork() and
 *     mremap().
 *  7. Every kind of outside reference makes to-private fail with EAGAIN at the
 *     right offset while it is held, and succeed once it is released.
 *  8. A range already in the wanted state: success, and nothing is unmapped.
 *     In a mixed range, pages already in the wanted state keep their guest
 *     mappings.
 *  9. Punching a hole drops contents and keeps state.
 * 10. Bindings: one file bound to several slots, slots at odd offsets, a slot
 *     smaller than the file, slot deletion and re-creation, the VM gone while
 *     the fd lives, the fd closed while mappings live: state and mappings stay
 *     right.
 * 13. A poisoned page keeps being reported as poisoned across conversions.
 * 14. NUMA policy keeps applying after conversions.
 * 15. VMs that track attributes in the VM behave as before.
 * 16. No sequence of conversions, however fragmented, can hurt the host.
 * 17. A host fault in flight is waited for, not reported.
 *
 * All tests run with VMs that track attributes in guest_memfd, no matter what
 * kvm.vm_memory_attributes says, as a VM can opt in.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/elf.h>
#include <linux/falloc.h>
#include <linux/kernel-page-flags.h>
#include <linux/stddef.h>
#include <linux/sizes.h>

#include "fail_nth.h"
#include "guest_memfd_fixture.h"
#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "numaif.h"
#include "processor.h"
#ifdef __x86_64__
#include "smm.h"
#endif
#include "test_util.h"
#include "ucall_common.h"

/*
 * The tests are quick, but not on an emulated machine that runs a kernel with
 * all debugging aids enabled.
 */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

/* The ABI is fixed, i.e. isn't whatever the header of the day says. */
kvm_static_assert(KVM_SET_MEMORY_ATTRIBUTES2 == 0xc080aed2);
kvm_static_assert(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES == 252);
kvm_static_assert(KVM_MEMORY_ATTRIBUTE_PRIVATE == 1ull << 3);
kvm_static_assert(GUEST_MEMFD_FLAG_MMAP == 1ull << 0);
kvm_static_assert(GUEST_MEMFD_FLAG_INIT_SHARED == 1ull << 1);
kvm_static_assert(sizeof(struct kvm_memory_attributes2) == 128);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, address) == 0);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, offset) == 0);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, size) == 8);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, attributes) == 16);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, flags) == 24);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, error_offset) == 32);
kvm_static_assert(offsetof(struct kvm_memory_attributes2, reserved) == 40);

/* Have KVM give up on the VM, whose only vCPU has never run. */
static void arch_kill_vm(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	/* There's no memory to save the state in that an SMI interrupts. */
	vcpu_set_msr(vcpu, MSR_IA32_SMBASE, 0xc0000000);
	inject_smi(vcpu);
	TEST_ASSERT(_vcpu_run(vcpu) && errno == EIO,
		    "KVM_RUN didn't fail as expected, errno = %d", errno);
#else
	/* The interrupt controller isn't initialized. */
	TEST_ASSERT(_vcpu_run(vcpu), "KVM_RUN didn't fail");
#endif
}

static bool is_vm_scoped_default(void)
{
	return has_vm_scoped() && get_kvm_param_bool("vm_memory_attributes");
}

/*
 * Arguments
 */

/* Break one thing about a good argument.  Returns false if there's no @nr. */
static bool break_arg(struct kvm_memory_attributes2 *attr, int nr, u64 file_size,
		      const char **what)
{
	const u64 bad_attributes[] = {
		BIT_ULL(0), BIT_ULL(1), BIT_ULL(2), BIT_ULL(4), BIT_ULL(32),
		BIT_ULL(63), ATTR_PRIVATE | BIT_ULL(0), ~0ull, ~ATTR_PRIVATE,
	};
	const u64 bad_flags[] = {
		BIT_ULL(0), BIT_ULL(31), BIT_ULL(32), BIT_ULL(63), ~0ull,
	};
	const struct {
		const char *what;
		u64 offset;
		u64 size;
	} bad_ranges[] = {
		{ "size 0", attr->offset, 0 },
		{ "size 0 at 0", 0, 0 },
		{ "size 0 at end of file", file_size, 0 },
		{ "overflow", -page_size, 2 * page_size },
		{ "overflow to 0", -page_size, page_size },
		{ "overflow of offset 0x8...", BIT_ULL(63), BIT_ULL(63) },
		{ "overflow by size", page_size, -page_size },
		{ "misaligned offset", 1, page_size },
		{ "misaligned offset, aligned end", page_size - 1, page_size + 1 },
		{ "misaligned offset by 512", page_size + 512, page_size },
		{ "misaligned offset in last page", file_size - 512, 512 },
		{ "misaligned size", page_size, 1 },
		{ "misaligned size, less", page_size, page_size - 1 },
		{ "misaligned size, more", page_size, page_size + 1 },
		{ "offset at end of file", file_size, page_size },
		{ "offset beyond end of file", file_size + page_size, page_size },
		{ "one page too many", file_size - page_size, 2 * page_size },
		{ "larger than the file", 0, file_size + page_size },
		{ "2^32 bytes too far", attr->offset + BIT_ULL(32), page_size },
		{ "2^44 bytes too far", attr->offset + BIT_ULL(44), page_size },
		{ "largest offset", -2 * page_size, page_size },
		{ "negative offset", BIT_ULL(63), page_size },
		{ "largest size", 0, -page_size },
		{ "negative size", 0, BIT_ULL(63) },
	};

	if (nr < ARRAY_SIZE(bad_flags)) {
		*what = "flags";
		attr->flags = bad_flags[nr];
		return true;
	}
	nr -= ARRAY_SIZE(bad_flags);

	if (nr < ARRAY_SIZE(attr->reserved)) {
		*what = "reserved";
		attr->reserved[nr] = BIT_ULL(nr * 5);
		return true;
	}
	nr -= ARRAY_SIZE(attr->reserved);

	if (nr < ARRAY_SIZE(bad_attributes)) {
		*what = "attributes";
		attr->attributes = bad_attributes[nr];
		return true;
	}
	nr -= ARRAY_SIZE(bad_attributes);

	if (nr < ARRAY_SIZE(bad_ranges)) {
		*what = bad_ranges[nr].what;
		attr->offset = bad_ranges[nr].offset;
		attr->size = bad_ranges[nr].size;
		return true;
	}

	return false;
}

static struct kvm_memory_attributes2 good_arg(u64 page, u64 nr, u64 attributes)
{
	return (struct kvm_memory_attributes2) {
		.offset = page * page_size,
		.size = nr * page_size,
		.attributes = attributes,
		.error_offset = ERROR_OFFSET_CANARY,
	};
}

/* The call fails with @expected, and doesn't touch any of the argument. */
static void __expect_error(int fd, struct kvm_memory_attributes2 *attr,
			   int expected, const char *what)
{
	struct kvm_memory_attributes2 copy = *attr;
	int r;

	errno = 0;
	r = __gmem_ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, attr);
	TEST_ASSERT(r == -1 && errno == expected,
		    "%s: expected errno %d (%s), got r = %d, errno %d (%s)",
		    what, expected, strerror(expected), r, errno, strerror(errno));
	TEST_ASSERT(!memcmp(&copy, attr, sizeof(*attr)),
		    "%s: the argument was modified", what);
}

/* ... and with each and every bad argument, too. */
static void expect_error_for_all(int fd, u64 file_size, int expected)
{
	const u64 attributes[] = { ATTR_PRIVATE, ATTR_SHARED };
	struct kvm_memory_attributes2 attr;
	const char *what;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(attributes); i++) {
		for (j = 0; ; j++) {
			attr = good_arg(0, 1, attributes[i]);
			if (!break_arg(&attr, j, file_size, &what))
				break;
			__expect_error(fd, &attr, expected, what);
		}
	}
}

/* Each invalid argument alone: EINVAL, and promise 1, nothing has changed. */
TEST_F(gmem, einval)
{
	const u64 attributes[] = { ATTR_PRIVATE, ATTR_SHARED };
	struct kvm_memory_attributes2 attr;
	const char *what;
	int i, j;

	make_mixed(self);

	for (i = 0; i < ARRAY_SIZE(attributes); i++) {
		for (j = 0; ; j++) {
			attr = good_arg(4, 8, attributes[i]);
			if (!break_arg(&attr, j, self->size, &what))
				break;

			__expect_error(self->fd, &attr, EINVAL, what);
			check_host(self);
		}
		check_guest(self);
	}

	/* Without the error there's nothing wrong with the argument. */
	for (i = 0; i < ARRAY_SIZE(attributes); i++) {
		convert(self, 4, 8, attributes[i]);
		check_all(self);
	}
}

/*
 * Each pair of invalid arguments.  Two wrongs don't make a right, e.g. flags
 * don't suppress range checks.
 */
TEST_F(gmem, einval_pairs)
{
	struct kvm_memory_attributes2 attr;
	const char *what, *ign;
	int i, j;

	make_mixed(self);

	for (i = 0; ; i++) {
		attr = good_arg(4, 8, ATTR_PRIVATE);
		if (!break_arg(&attr, i, self->size, &what))
			break;

		for (j = 0; ; j++) {
			attr = good_arg(4, 8, j & 1 ? ATTR_PRIVATE : ATTR_SHARED);
			if (!break_arg(&attr, j, self->size, &ign))
				break;
			break_arg(&attr, i, self->size, &what);

			__expect_error(self->fd, &attr, EINVAL, what);
		}
		check_host(self);
	}
	check_guest(self);
}

/*
 * Invalid arguments are rejected before KVM looks at the memory: EINVAL beats
 * EAGAIN, and error_offset stays as it is.
 */
TEST_F(gmem, einval_before_eagain)
{
	struct kvm_memory_attributes2 attr;
	const char *what;
	struct pin pin;
	int j;

	make_mixed(self);
	pin_page(&pin, page_hva(self, 0));

	for (j = 0; ; j++) {
		attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
		if (!break_arg(&attr, j, self->size, &what))
			break;
		__expect_error(self->fd, &attr, EINVAL, what);
	}
	TEST_ASSERT_EQ(try_convert(self->fd, 0, self->size, ATTR_PRIVATE), EAGAIN);
	check_all(self);

	unpin_page(&pin);
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_all(self);
}

#define NR_BAD_POINTERS		6

/*
 * Pointers that can't be read, or not all the way.  @scratch has three pages,
 * of which the first one is left accessible.
 */
static void *bad_pointer(int nr, u8 *scratch)
{
	struct kvm_memory_attributes2 attr = good_arg(4, 8, ATTR_PRIVATE);
	void *straddle = scratch + page_size - sizeof(attr) / 2;

	switch (nr) {
	case 0:
		return NULL;
	case 1:
		return (void *)-page_size;
	case 2:
		/* The kernel's half of the address space. */
		return (void *)~(-1ul >> 1);
	case 3:
		kvm_munmap(scratch + page_size, page_size);
		return scratch + page_size;
	case 4:
		memcpy(straddle, &attr, sizeof(attr) / 2);
		return straddle;
	case 5:
		TEST_ASSERT(!mprotect(scratch + 2 * page_size, page_size, PROT_NONE),
			    "mprotect() failed");
		return scratch + 2 * page_size;
	default:
		TEST_FAIL("No bad pointer %d", nr);
	}
}

static u8 *map_scratch(void)
{
	return kvm_mmap(3 * page_size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* Pointers that can't be read: EFAULT, and promise 1, nothing has changed. */
TEST_F(gmem, efault_read)
{
	u8 *scratch = map_scratch();
	int i, r;

	make_mixed(self);

	for (i = 0; i < NR_BAD_POINTERS; i++) {
		r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, bad_pointer(i, scratch));
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "Bad pointer %d: r = %d, errno = %d", i, r, errno);
		check_host(self);
	}
	check_guest(self);
}

/* Convert with an argument, or part of it, at @p that can't be written. */
static void convert_read_only(gmem_data *self, void *p, void *page,
			      struct kvm_memory_attributes2 *attr, bool pinned)
{
	bool fails = pinned && attr->attributes == ATTR_PRIVATE;
	int r;

	/* Some of the pages are to be converted, and page 5 is shared. */
	convert(self, 4, 8, ATTR_SHARED);
	convert(self, 8, 2, ATTR_PRIVATE);

	memcpy(p, attr, sizeof(*attr));
	TEST_ASSERT(!mprotect(page, page_size, PROT_READ), "mprotect() failed");

	r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, p);
	TEST_ASSERT(fails ? r == -1 && errno == EFAULT : !r,
		    "Read-only at %lu, %s: r = %d, errno = %d",
		    (unsigned long)(page - p), pinned ? "page pinned" : "no page pinned",
		    r, errno);

	TEST_ASSERT(!mprotect(page, page_size, PROT_READ | PROT_WRITE),
		    "mprotect() failed");

	/* If it worked, there's nothing left to do but to remember it. */
	if (!fails)
		convert(self, attr->offset / page_size, attr->size / page_size,
			attr->attributes);
	check_host(self);
}

/*
 * An argument that can't be written is good unless there is something to be
 * written, and then nothing has changed.
 */
TEST_F(gmem, efault_write)
{
	struct kvm_memory_attributes2 attr[] = {
		good_arg(4, 8, ATTR_PRIVATE),
		good_arg(4, 8, ATTR_SHARED),
	};
	struct kvm_memory_attributes2 bad;
	u8 *scratch = map_scratch();
	int i, nr, r, pinned;
	const char *what;
	struct pin pin;

	make_mixed(self);

	/* What's wrong with it is what the caller is told. */
	for (nr = 0; ; nr++) {
		bad = attr[0];
		if (!break_arg(&bad, nr, self->size, &what))
			break;

		memcpy(scratch, &bad, sizeof(bad));
		TEST_ASSERT(!mprotect(scratch, page_size, PROT_READ), "mprotect() failed");
		r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, scratch);
		TEST_ASSERT(r == -1 && errno == EINVAL,
			    "Read-only argument, %s: r = %d, errno = %d", what, r, errno);
		TEST_ASSERT(!mprotect(scratch, page_size, PROT_READ | PROT_WRITE),
			    "mprotect() failed");
	}
	TEST_ASSERT(nr > 0, "There's nothing wrong with the argument");
	check_host(self);

	for (pinned = 0; pinned < 2; pinned++) {
		for (i = 0; i < ARRAY_SIZE(attr); i++) {
			convert(self, 4, 8, ATTR_SHARED);
			if (pinned)
				pin_page(&pin, page_hva(self, 5));

			/* All of the argument, and only what KVM writes. */
			convert_read_only(self, scratch, scratch, &attr[i], pinned);
			convert_read_only(self, scratch + 2 * page_size -
					  offsetof(struct kvm_memory_attributes2, error_offset),
					  scratch + 2 * page_size, &attr[i], pinned);

			if (pinned)
				unpin_page_and_check(&pin, self->pages[5].tag, 5);
		}
	}
	check_guest(self);
}

/*
 * Nothing stops a VMM from putting the argument into the very memory that is
 * being converted.  KVM must neither choke on that, nor lose error_offset, nor
 * write to memory that has become private.
 */
TEST_F(gmem, argument_in_guest_memfd)
{
	struct kvm_memory_attributes2 *attr;
	struct pin pin;
	int r;

	make_mixed(self);

	/* Unreadable, it's private. */
	attr = (void *)page_hva(self, 2);
	r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, attr);
	TEST_ASSERT(r == -1 && errno == EFAULT, "r = %d, errno = %d", r, errno);
	check_all(self);

	/* In the range, and the conversion fails because of another page. */
	attr = (void *)page_hva(self, 0);
	pin_page(&pin, page_hva(self, 5));
	*attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
	r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, attr);
	TEST_ASSERT(r == -1 && errno == EAGAIN, "r = %d, errno = %d", r, errno);
	TEST_ASSERT_EQ(attr->error_offset, 5 * page_size);
	unpin_page(&pin);
	host_fill(self, 0, 1, 0x11);
	check_all(self);

	/* In the range, alone. */
	host_fill(self, 0, 1, 0x12);
	*attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
	attr->error_offset = page_word(0x12, 0, 4);
	r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, attr);
	TEST_ASSERT(!r, "r = %d, errno = %d", r, errno);
	assert_private(attr);

	convert(self, 0, NR_PAGES, ATTR_SHARED);
	TEST_ASSERT_EQ(attr->size, self->size);
	TEST_ASSERT_EQ(attr->error_offset, page_word(0x12, 0, 4));
	host_fill(self, 0, 1, 0x13);
	check_all(self);
}

/*
 * The ioctl is for guest_memfd only, and is the only one guest_memfd has.
 */
TEST_F(gmem, enotty)
{
	struct kvm_memory_attributes2 attr, copy;
	const unsigned long unknown[] = {
		KVM_SET_MEMORY_ATTRIBUTES,
		KVM_RUN,
		KVM_CREATE_VM,
		KVM_CHECK_EXTENSION,
		KVM_CREATE_GUEST_MEMFD,
		_IO(KVMIO, 0xd2),
		_IOC(_IOC_READ, KVMIO, 0xd2, 128),
		_IOC(_IOC_WRITE, KVMIO, 0xd2, 128),
		_IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd2, 40),
		_IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd2, 120),
		_IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd2, 136),
		_IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd1, 128),
		_IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd3, 128),
		_IOC(_IOC_READ | _IOC_WRITE, 0x12, 0xd2, 128),
	};
	const int wrong_fds[] = {
		self->vm->kvm_fd, self->vm->fd, self->vcpu->fd,
	};
	int i, r;

	make_mixed(self);

	for (i = 0; i < ARRAY_SIZE(unknown); i++) {
		attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
		copy = attr;
		r = ioctl(self->fd, unknown[i], &attr);
		TEST_ASSERT(r == -1 && errno == ENOTTY,
			    "Unknown ioctl 0x%lx: r = %d, errno = %d",
			    unknown[i], r, errno);
		TEST_ASSERT(!memcmp(&copy, &attr, sizeof(attr)),
			    "Unknown ioctl 0x%lx modified its argument", unknown[i]);
		check_host(self);
	}

	/*
	 * Which errno stands for "unknown ioctl" on the other file descriptors
	 * predates, and is none of the business of, KVM_SET_MEMORY_ATTRIBUTES2.
	 */
	for (i = 0; i < ARRAY_SIZE(wrong_fds); i++) {
		attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
		copy = attr;
		r = __gmem_ioctl(wrong_fds[i], KVM_SET_MEMORY_ATTRIBUTES2, &attr);
		TEST_ASSERT(r == -1 && (errno == ENOTTY || errno == EINVAL),
			    "Wrong fd %d: r = %d, errno = %d", i, r, errno);
		TEST_ASSERT(!memcmp(&copy, &attr, sizeof(attr)),
			    "Wrong fd %d: the argument was modified", i);
		check_host(self);
	}
	check_guest(self);
}

static void eio_in_child(void *data)
{
	gmem_data *self = data;
	u8 *scratch = map_scratch();
	struct kvm_memory_attributes2 attr;
	int i, r;

	attr = good_arg(4, 8, ATTR_PRIVATE);
	__expect_error(self->fd, &attr, EIO, "to private");
	attr = good_arg(4, 8, ATTR_SHARED);
	__expect_error(self->fd, &attr, EIO, "to shared");

	/* Nothing to do isn't a reason to skip the check ... */
	attr = good_arg(0, 2, ATTR_SHARED);
	__expect_error(self->fd, &attr, EIO, "already shared");

	/* ... and it's the first one. */
	expect_error_for_all(self->fd, self->size, EIO);
	for (i = 0; i < NR_BAD_POINTERS; i++) {
		r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, bad_pointer(i, scratch));
		TEST_ASSERT(r == -1 && errno == EIO,
			    "Bad pointer %d: r = %d, errno = %d", i, r, errno);
	}

	/* The child may use the memory, subject to the usual rules, though. */
	check_host(self);
}

/* What another process has, over a socket, is as good as the file itself. */
static void eio_in_receiver(gmem_data *self)
{
	gmem_data copy = *self;
	int socks[2], status;
	pid_t pid;

	TEST_ASSERT(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks),
		    "socketpair() failed");
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		kvm_close(copy.fd);
		kvm_munmap(copy.mem, copy.size);
		copy.fd = receive_fd(socks[1]);
		copy.mem = mmap_gmem(copy.fd, copy.size);
		eio_in_child(&copy);
		_exit(KSFT_PASS);
	}

	send_fd(socks[0], self->fd);
	kvm_close(socks[0]);
	kvm_close(socks[1]);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT_EQ(status, 0);
}

static int vfork_child_errno;

static void convert_in_vfork_child(int fd, u64 offset, u64 size, u64 attributes)
{
	int status;
	pid_t pid;

	vfork_child_errno = -1;

	pid = vfork();
	if (!pid) {
		struct kvm_memory_attributes2 attr = {
			.offset = offset,
			.size = size,
			.attributes = attributes,
		};
		int r = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr);

		WRITE_ONCE(vfork_child_errno, r ? errno : 0);
		_exit(0);
	}

	TEST_ASSERT(pid > 0, "vfork() failed");
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT_EQ(READ_ONCE(vfork_child_errno), 0);
}

/*
 * A process that was only handed the fd can't convert, it takes the address
 * space that created the VM.
 */
TEST_F(gmem, eio)
{
	struct pin pin;
	int i;

	make_mixed(self);
	run_in_child(eio_in_child, self);
	eio_in_receiver(self);
	check_all(self);

	/* EIO beats EAGAIN. */
	pin_page(&pin, page_hva(self, 5));
	run_in_child(eio_in_child, self);
	unpin_page(&pin);
	check_all(self);

	/* Another process, but the same address space. */
	convert_in_vfork_child(self->fd, 0, self->size, ATTR_PRIVATE);
	for (i = 0; i < NR_PAGES; i++)
		self->pages[i].private = true;
	check_all(self);
}

/*
 * A VM that KVM has given up on can't be changed anymore, not even by its owner.
 * The host's mappings work as ever.
 */
TEST(eio_dead)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = PRIVATE_VM_TYPE,
	};
	struct kvm_vm *vm = __vm_create(shape, 1, 0);
	u64 size = NR_PAGES * page_size, i;
	struct kvm_memory_attributes2 attr;
	struct kvm_vcpu *vcpu;
	u8 *mem;
	int fd;

	vm_enable_gmem_attributes(vm);
	vcpu = vm_vcpu_add(vm, 0, guest_code);
	fd = vm_create_guest_memfd(vm, size, MMAP_SHARED);
	mem = mmap_gmem(fd, size);
	for (i = 0; i < NR_PAGES; i++)
		fill_page((u64 *)(mem + i * page_size), 0x33, i, page_size);
	TEST_ASSERT_EQ(try_convert(fd, 0, size / 2, ATTR_PRIVATE), 0);

	arch_kill_vm(vcpu);
	TEST_ASSERT(__vm_ioctl(vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_GUEST_MEMFD) &&
		    errno == EIO, "The VM isn't dead, errno = %d", errno);

	attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
	__expect_error(fd, &attr, EIO, "to private");
	attr = good_arg(0, NR_PAGES, ATTR_SHARED);
	__expect_error(fd, &attr, EIO, "to shared");
	attr = good_arg(0, 1, ATTR_PRIVATE);
	__expect_error(fd, &attr, EIO, "already private");
	expect_error_for_all(fd, size, EIO);

	for (i = 0; i < NR_PAGES; i++) {
		if (i < NR_PAGES / 2)
			assert_private(mem + i * page_size);
		else
			assert_shared(mem + i * page_size, 0x33, i);
	}
}

static void enotty_in_child(void *data)
{
	struct kvm_memory_attributes2 attr = good_arg(0, 1, ATTR_PRIVATE);

	__expect_error(*(int *)data, &attr, ENOTTY, "another process");
}

/*
 * On a VM that tracks attributes in the VM the ioctl doesn't exist, no matter
 * how it is called.  The VM works as ever (promise 15).
 */
TEST(vm_scoped)
{
	struct kvm_memory_attributes2 attr;
	u8 *scratch = map_scratch();
	int fd, i, r, rw_fd;
	struct kvm_vm *vm;
	u64 size;
	u8 *mem;

	if (!is_vm_scoped_default())
		SKIP(return, "All VMs track attributes in guest_memfd");

	size = NR_PAGES * page_size;
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	TEST_ASSERT(!vm_has_gmem_attributes(vm), "New VMs shouldn't opt in");

	/* Without guest_memfd tracking, private memory isn't INIT_SHARED. */
	TEST_ASSERT(!(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
		      GUEST_MEMFD_FLAG_INIT_SHARED), "INIT_SHARED is supported");
	r = __vm_create_guest_memfd(vm, size, MMAP_SHARED);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);

	fd = vm_create_guest_memfd(vm, size, MMAP_PRIVATE);
	mem = mmap_gmem(fd, size);

	rw_fd = fd;
	for (i = 0; i < 2; i++) {
		attr = good_arg(0, NR_PAGES, i ? ATTR_PRIVATE : ATTR_SHARED);
		__expect_error(fd, &attr, ENOTTY, "VM-scoped");
		assert_private(mem);
	}
	expect_error_for_all(fd, size, ENOTTY);
	run_in_child(enotty_in_child, &rw_fd);
	for (i = 0; i < NR_BAD_POINTERS; i++) {
		r = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, bad_pointer(i, scratch));
		TEST_ASSERT(r == -1 && errno == ENOTTY,
			    "Bad pointer %d: r = %d, errno = %d", i, r, errno);
	}
	assert_private(mem);

	vm_set_memory_attributes(vm, TEST_GPA, size, ATTR_PRIVATE);
	vm_set_memory_attributes(vm, TEST_GPA, size, ATTR_SHARED);
	assert_private(mem);

	kvm_munmap(mem, size);
	kvm_close(fd);
	kvm_vm_free(vm);
}

/*
 * A VM with either tracking, side by side.  Each converts its own memory, in its
 * own way, and doesn't notice the other.
 */
TEST_F(gmem, both_trackings)
{
	const u64 half = NR_PAGES / 2;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i;

	if (!is_vm_scoped_default())
		SKIP(return, "All VMs track attributes in guest_memfd");

	vm = __create_vm(&vcpu, false);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT,
				    NR_PAGES, KVM_MEM_GUEST_MEMFD);

	make_mixed(self);

	for (i = 0; i < 3; i++) {
		/* Another page each time, i.e. what was private isn't any more. */
		guest_do(vcpu, GUEST_FILL, TEST_GPA, 0, NR_PAGES, 0x51 + i);
		vm_set_memory_attributes(vm, page_gpa(half), half * page_size,
					 ATTR_PRIVATE);
		guest_do(vcpu, GUEST_CHECK, TEST_GPA, 0, half, 0x51 + i);
		guest_do(vcpu, GUEST_CHECK, page_gpa(half), half, half, i ? 0x61 : 0);
		check_all(self);

		convert(self, 0, NR_PAGES, i & 1 ? ATTR_SHARED : ATTR_PRIVATE);
		guest_do(vcpu, GUEST_FILL, page_gpa(half), half, half, 0x61);
		check_all(self);

		vm_set_memory_attributes(vm, page_gpa(half), half * page_size,
					 ATTR_SHARED);
		guest_do(vcpu, GUEST_CHECK, TEST_GPA, 0, NR_PAGES, 0x51 + i);
		check_all(self);
	}

	kvm_vm_free(vm);
}

/*
 * Promise 15: with VM-scoped tracking, a file that can be mapped, but isn't shared at
 * first, has all of a memslot's memory, private or not, and the host none of it.
 */
TEST(vm_scoped_mmap)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 size;
	u8 *mem;
	int fd;

	if (!is_vm_scoped_default())
		SKIP(return, "All VMs track attributes in guest_memfd");

	size = NR_PAGES * page_size;
	vm = __create_vm(&vcpu, false);
	fd = vm_create_guest_memfd(vm, size, MMAP_PRIVATE);
	mem = mmap_gmem(fd, size);
	vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA, size,
				   mem, fd, 0);

	guest_do(vcpu, GUEST_FILL, TEST_GPA, 0, NR_PAGES, 0x51);
	assert_private(mem);

	vm_set_memory_attributes(vm, TEST_GPA, size, ATTR_PRIVATE);
	guest_do(vcpu, GUEST_CHECK, TEST_GPA, 0, NR_PAGES, 0x51);
	assert_private(mem);

	vm_set_memory_attributes(vm, TEST_GPA, size, ATTR_SHARED);
	guest_do(vcpu, GUEST_CHECK, TEST_GPA, 0, NR_PAGES, 0x51);
	assert_private(mem);

	kvm_munmap(mem, size);
	kvm_close(fd);
	kvm_vm_free(vm);
}

/*
 * There's nothing to convert on a VM without private memory, not even to
 * shared.
 */
TEST(no_private_memory)
{
	const bool vm_scoped = is_vm_scoped_default();
	struct kvm_memory_attributes2 attr;
	struct kvm_vm *vm;
	u64 size;
	u8 *mem;
	int fd, i, r;

	size = NR_PAGES * page_size;
	vm = vm_create_barebones();
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES), 0);

	r = __vm_enable_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, ATTR_PRIVATE);
	TEST_ASSERT(r == -1 && errno == EINVAL, "r = %d, errno = %d", r, errno);

	fd = vm_create_guest_memfd(vm, size, MMAP_SHARED);
	mem = mmap_gmem(fd, size);
	for (i = 0; i < NR_PAGES; i++)
		fill_page((u64 *)(mem + i * page_size), 0x77, i, page_size);

	for (i = 0; i < 2; i++) {
		attr = good_arg(0, NR_PAGES, i ? ATTR_PRIVATE : ATTR_SHARED);
		__expect_error(fd, &attr, vm_scoped ? ENOTTY : EINVAL,
			       "No private memory");
	}
	expect_error_for_all(fd, size, vm_scoped ? ENOTTY : EINVAL);

	for (i = 0; i < NR_PAGES; i++)
		assert_shared(mem + i * page_size, 0x77, i);

	kvm_munmap(mem, size);
	kvm_close(fd);
	kvm_vm_free(vm);
}

/*
 * Opting in
 */

static void expect_tracking(struct kvm_vm *vm, bool in_gmem)
{
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       in_gmem ? ATTR_PRIVATE : 0);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES),
		       in_gmem ? 0 : ATTR_PRIVATE);
}

static int try_opt_in(struct kvm_vm *vm, u64 arg0, u32 flags)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
		.flags = flags,
		.args = { arg0 },
	};

	return __vm_ioctl(vm, KVM_ENABLE_CAP, &cap) ? errno : 0;
}

static int try_set_vm_attributes(struct kvm_vm *vm, u64 attributes)
{
	struct kvm_memory_attributes attr = {
		.address = TEST_GPA,
		.size = NR_PAGES * page_size,
		.attributes = attributes,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr) ? errno : 0;
}

/* It's EINVAL, unless the kernel has never heard of VM-scoped attributes. */
static void __assert_vm_attributes_rejected(struct kvm_vm *vm, u64 attributes, int line)
{
	int r = try_set_vm_attributes(vm, attributes);

	TEST_ASSERT(r == EINVAL || (r == ENOTTY && !has_vm_scoped()),
		    "Line %d: KVM_SET_MEMORY_ATTRIBUTES: r = %d", line, r);
}

#define assert_vm_attributes_rejected(vm, attributes)			\
	__assert_vm_attributes_rejected(vm, attributes, __LINE__)

/* What new VMs do is up to the kernel parameter, which is read-only. */
TEST(opt_in_default)
{
	const bool vm_scoped = is_vm_scoped_default();
	struct kvm_vm *vm;
	struct stat st;

	if (has_vm_scoped()) {
		TEST_ASSERT(!stat(VM_SCOPED_PARAM, &st), "stat() failed");
		TEST_ASSERT_EQ(st.st_mode & 0777, 0444);
	}

	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       vm_scoped ? 0 : ATTR_PRIVATE);
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES),
		       vm_scoped ? ATTR_PRIVATE : 0);
	TEST_ASSERT_EQ(kvm_has_gmem_attributes(), !vm_scoped);

	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	expect_tracking(vm, !vm_scoped);
	kvm_vm_free(vm);
}

/* Opting in works, and has no side effects on other VMs. */
TEST(opt_in)
{
	const bool vm_scoped = is_vm_scoped_default();
	struct kvm_vm *vm, *other;
	int fd, other_fd;
	u64 flags;

	other = vm_create_barebones_type(PRIVATE_VM_TYPE);
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE, 0), 0);
	expect_tracking(vm, true);
	expect_tracking(other, !vm_scoped);

	/* Again. */
	TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE, 0), 0);
	expect_tracking(vm, true);

	/* Only one of the two trackings is in use at a time. */
	assert_vm_attributes_rejected(vm, ATTR_PRIVATE);
	assert_vm_attributes_rejected(vm, ATTR_SHARED);
	if (vm_scoped)
		TEST_ASSERT_EQ(try_set_vm_attributes(other, ATTR_PRIVATE), 0);
	else
		assert_vm_attributes_rejected(other, ATTR_PRIVATE);

	/* INIT_SHARED comes and goes with tracking in guest_memfd. */
	flags = vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	TEST_ASSERT((flags & MMAP_SHARED) == MMAP_SHARED,
		    "Flags = 0x%lx", flags);

	fd = vm_create_guest_memfd(vm, page_size, MMAP_SHARED);
	other_fd = vm_create_guest_memfd(other, page_size, MMAP_PRIVATE);
	TEST_ASSERT_EQ(try_convert(fd, 0, page_size, ATTR_PRIVATE), 0);
	TEST_ASSERT_EQ(try_convert(other_fd, 0, page_size, ATTR_PRIVATE),
		       vm_scoped ? ENOTTY : 0);
	if (vm_scoped)
		TEST_ASSERT_EQ(try_set_vm_attributes(other, ATTR_SHARED), 0);

	kvm_close(fd);
	kvm_close(other_fd);
	kvm_vm_free(vm);
	kvm_vm_free(other);
}

/*
 * KVM_SET_MEMORY_ATTRIBUTES fails, and does nothing, if attributes are tracked
 * in guest_memfd.
 */
TEST_F(gmem, vm_scoped_ioctl_rejected)
{
	make_mixed(self);

	assert_vm_attributes_rejected(self->vm, ATTR_PRIVATE);
	check_all(self);
	assert_vm_attributes_rejected(self->vm, ATTR_SHARED);
	check_all(self);
}

/* All that can be wrong with the arguments. */
TEST(opt_in_einval)
{
	const bool vm_scoped = is_vm_scoped_default();
	struct kvm_vm *vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	int i;

	for (i = 0; i < 64; i++) {
		if (BIT_ULL(i) == ATTR_PRIVATE)
			continue;

		TEST_ASSERT_EQ(try_opt_in(vm, BIT_ULL(i), 0), EINVAL);
		TEST_ASSERT_EQ(try_opt_in(vm, BIT_ULL(i) | ATTR_PRIVATE, 0), EINVAL);
	}
	TEST_ASSERT_EQ(try_opt_in(vm, ~0ull, 0), EINVAL);
	TEST_ASSERT_EQ(try_opt_in(vm, 0, 0), EINVAL);
	for (i = 0; i < 32; i++) {
		TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE, BIT(i)), EINVAL);
		TEST_ASSERT_EQ(try_opt_in(vm, 0, BIT(i)), EINVAL);
	}
	expect_tracking(vm, !vm_scoped);

	/* A failed attempt doesn't preclude success. */
	TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE, 0), 0);
	expect_tracking(vm, true);
	TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE, 1), EINVAL);
	TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE | 1, 0), EINVAL);
	expect_tracking(vm, true);
	kvm_vm_free(vm);
}

static void __expect_too_late(struct kvm_vm *vm, int line)
{
	int r = try_opt_in(vm, ATTR_PRIVATE, 0);

	TEST_ASSERT(r == EBUSY, "Line %d: r = %d (%s)", line, r, strerror(r));
	expect_tracking(vm, false);
}

#define expect_too_late(vm)		__expect_too_late(vm, __LINE__)

/* There's no opting in, or out, midway. */
TEST(opt_in_ebusy)
{
	struct kvm_vm *vm;
	int fd;

	if (!is_vm_scoped_default())
		SKIP(return, "All VMs track attributes in guest_memfd");

	/* A guest_memfd exists. */
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	fd = vm_create_guest_memfd(vm, page_size, 0);
	expect_too_late(vm);
	TEST_ASSERT_EQ(try_convert(fd, 0, page_size, ATTR_PRIVATE), ENOTTY);

	/* It did. */
	kvm_close(fd);
	expect_too_late(vm);
	kvm_vm_free(vm);

	/* A vCPU exists. */
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	__vm_vcpu_add(vm, 0);
	expect_too_late(vm);
	kvm_vm_free(vm);

	/* VM-scoped attributes exist. */
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	vm_set_memory_attributes(vm, TEST_GPA, page_size, ATTR_PRIVATE);
	expect_too_late(vm);

	/* They did. */
	vm_set_memory_attributes(vm, TEST_GPA, page_size, ATTR_SHARED);
	expect_too_late(vm);
	kvm_vm_free(vm);

	/* They were set to what they are by default. */
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	vm_set_memory_attributes(vm, TEST_GPA, page_size, ATTR_SHARED);
	expect_too_late(vm);
	kvm_vm_free(vm);

	/* Memslots, without guest_memfd, don't get in the way. */
	vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA,
				    TEST_SLOT, 1, 0);
	TEST_ASSERT_EQ(try_opt_in(vm, ATTR_PRIVATE, 0), 0);
	expect_tracking(vm, true);
	kvm_vm_free(vm);
}

/* Once in use, nothing about opting in again changes anything. */
TEST_F(gmem, opt_in_late)
{
	make_mixed(self);

	TEST_ASSERT_EQ(try_opt_in(self->vm, ATTR_PRIVATE, 0), 0);
	TEST_ASSERT_EQ(try_opt_in(self->vm, ATTR_PRIVATE, 1), EINVAL);
	expect_tracking(self->vm, true);
	check_all(self);

	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_all(self);
}

/*
 * Promise 1: a page that can't be made private keeps all other pages of the
 * range from being converted, and from losing their contents.  The guest isn't
 * disturbed.
 */
TEST_F(gmem, all_or_nothing)
{
	u64 pinned, first, error_offset;
	struct pin pin;
	u64 i;

	make_mixed(self);

	for (pinned = 0; pinned < NR_PAGES; pinned++) {
		if (self->pages[pinned].private)
			continue;

		pin_page(&pin, page_hva(self, pinned));
		for (first = 0; first <= pinned; first++) {
			for (i = 0; i < 2; i++) {
				u64 nr = i ? NR_PAGES - first : pinned + 1 - first;

				TEST_ASSERT_EQ(__try_convert(self->fd, first * page_size,
							     nr * page_size,
							     ATTR_PRIVATE,
							     &error_offset), EAGAIN);
				TEST_ASSERT_EQ(error_offset, pinned * page_size);
				check_host(self);
			}
		}
		check_guest(self);

		/* The guest can write, too, and the reference sees it. */
		guest_fill(self, 0, NR_PAGES, 0x60 + pinned);
		check_all(self);
		unpin_page_and_check(&pin, 0x60 + pinned, pinned);
	}

	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_all(self);
}

/*
 * Promise 4: neither the page nor what's in it changes, however often it is
 * converted and whoever writes in between.
 */
TEST_F(gmem, in_place)
{
	u64 pfns[NR_PAGES];
	int round;
	u64 i;

	if (geteuid())
		SKIP(return, "Needs CAP_SYS_ADMIN to read PFNs");

	host_fill(self, 0, NR_PAGES, 0x80);
	for (i = 0; i < NR_PAGES; i++)
		pfns[i] = host_pfn(page_hva(self, i));

	for (round = 0; round < 10; round++) {
		/* Written by the host, read and written by the guest. */
		host_fill(self, 0, NR_PAGES, 0x81 + 2 * round);
		if (round & 1)
			check_guest(self);
		convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		check_all(self);

		/* Every third round, nobody but the host writes. */
		if (round % 3)
			guest_fill(self, 0, NR_PAGES, 0x82 + 2 * round);

		/* Page by page, or all at once. */
		if (round & 2) {
			for (i = 0; i < NR_PAGES; i++)
				convert(self, i, 1, ATTR_SHARED);
		} else {
			convert(self, 0, NR_PAGES, ATTR_SHARED);
		}
		check_all(self);

		for (i = 0; i < NR_PAGES; i++)
			TEST_ASSERT(host_pfn(page_hva(self, i)) == pfns[i],
				    "Page %lu moved", i);
	}
}

/* Have the kernel take the pages for idle, i.e. age all mappings of them. */
static void age_pages(int fd, const u64 *pfns)
{
	u64 i, bits, all = ~0ull;

	/* Marking a page's neighbors, too, makes no difference. */
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT_EQ(pwrite(fd, &all, 8, pfns[i] / 64 * 8), 8);

	for (i = 0; i < NR_PAGES; i++) {
		TEST_ASSERT_EQ(pread(fd, &bits, 8, pfns[i] / 64 * 8), 8);
		TEST_ASSERT(bits & BIT_ULL(pfns[i] % 64), "Page %lu isn't idle", i);
	}
}

/*
 * Promises 4 and 7: nothing but time is lost if the kernel looks for pages that
 * aren't in use.  Unless hardware does it, KVM has to make guest mappings young
 * again when the guest uses them.
 */
TEST_F(gmem, aged)
{
	u64 pfns[NR_PAGES];
	int fd, round;
	u64 i;

	fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	if (fd < 0)
		SKIP(return, "Needs CONFIG_IDLE_PAGE_TRACKING, and root");

	/* Pages can be idle only once they are out of the LRU batches. */
	host_fill(self, 0, NR_PAGES, 0x50);
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
	for (i = 0; i < NR_PAGES; i++)
		pfns[i] = host_pfn(page_hva(self, i));

	for (round = 0; round < 4; round++) {
		/* The guest reads, or writes, what is old and still shared... */
		age_pages(fd, pfns);
		if (round & 1)
			guest_fill(self, 0, NR_PAGES, 0x51 + 2 * round);
		else
			check_guest(self);
		for (i = 0; i < NR_PAGES; i++) {
			if (i & 2)
				convert(self, i, 1, ATTR_PRIVATE);
		}
		check_all(self);

		/* ...what isn't all shared, and what is old when it is converted. */
		age_pages(fd, pfns);
		if (round & 2)
			guest_fill(self, 0, NR_PAGES, 0x52 + 2 * round);
		else
			check_guest(self);
		age_pages(fd, pfns);
		convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		check_all(self);

		age_pages(fd, pfns);
		convert(self, 0, NR_PAGES, ATTR_SHARED);
		check_all(self);

		for (i = 0; i < NR_PAGES; i++)
			TEST_ASSERT(host_pfn(page_hva(self, i)) == pfns[i],
				    "Page %lu moved", i);
	}

	kvm_close(fd);
}

/* Leave non-zero pages for the page allocator to hand out next. */
static void dirty_free_memory(gmem_data *self)
{
	const u64 size = 256 * page_size;
	int fd = vm_create_guest_memfd(self->vm, size, MMAP_SHARED);
	u8 *mem = mmap_gmem(fd, size);

	memset(mem, 0xa5, size);
	kvm_munmap(mem, size);
	kvm_close(fd);
}

/*
 * Promise 5: whoever sees a page first, in whatever state, after whichever
 * conversions, sees zeroes.
 */
TEST_F(gmem, zero_on_first_sight)
{
	int i;

	for (i = 0; i < 8; i++) {
		bool allocate = i & 1;
		bool twice = i & 2;
		bool guest_first = i & 4;

		punch_hole(self->fd, 0, self->size);
		dirty_free_memory(self);

		/* To-private, seen by the guest. */
		if (allocate)
			kvm_fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 0, self->size);
		convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		if (twice) {
			convert(self, 0, NR_PAGES, ATTR_SHARED);
			convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		}
		check_guest(self);
		check_host(self);

		punch_hole(self->fd, 0, self->size);
		dirty_free_memory(self);

		/* To-shared, seen by the host, or by the guest. */
		if (allocate)
			kvm_fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 0, self->size);
		convert(self, 0, NR_PAGES, ATTR_SHARED);
		if (twice) {
			convert(self, 0, NR_PAGES, ATTR_PRIVATE);
			convert(self, 0, NR_PAGES, ATTR_SHARED);
		}
		if (guest_first)
			check_guest(self);
		check_host(self);
		check_guest(self);
	}
}

static int try_populate(gmem_data *self, u64 page, u64 nr, void *src)
{
	char path[64], cmd[80];
	ssize_t len;
	int fd, r;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/gmem_populate",
		 getpid(), self->vm->fd);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;

	len = snprintf(cmd, sizeof(cmd), "%lu %lu %lu", page_gpa(page) / page_size, nr,
		       (unsigned long)src);
	r = write(fd, cmd, len) == len ? 0 : errno;
	kvm_close(fd);
	return r;
}

/*
 * Promises 4 and 5, of a guest's initial contents: without a source, they are what is
 * in the page already, or zero if there is nothing.  Only private memory can be
 * populated, and only once.
 */
TEST_F(gmem, populate)
{
	u64 *src;

	host_fill(self, 0, 2, 0x31);
	if (try_populate(self, 0, 1, NULL) == ENOENT)
		SKIP(return, "Needs CONFIG_KVM_PROVE_GMEM");

	src = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fill_page(src, 0x32, 4, page_size);

	TEST_ASSERT_EQ(try_populate(self, 0, 1, NULL), EINVAL);
	TEST_ASSERT_EQ(try_populate(self, 0, 1, src), EINVAL);
	check_all(self);

	convert(self, 0, 2, ATTR_PRIVATE);
	TEST_ASSERT_EQ(try_populate(self, 0, 2, NULL), 0);
	TEST_ASSERT_EQ(try_populate(self, 0, 1, NULL), EINVAL);
	TEST_ASSERT_EQ(try_populate(self, 0, 1, src), EINVAL);

	punch_hole(self->fd, 2 * page_size, 2 * page_size);
	dirty_free_memory(self);
	convert(self, 2, 2, ATTR_PRIVATE);
	TEST_ASSERT_EQ(try_populate(self, 2, 2, NULL), 0);

	convert(self, 4, 1, ATTR_PRIVATE);
	TEST_ASSERT_EQ(try_populate(self, 4, 1, src), 0);
	self->pages[4].tag = 0x32;

	check_all(self);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
	kvm_munmap(src, page_size);
}

/*
 * Promise 6, and what goes for shared pages: access through the kernel works
 * if, and only if, direct access does.  Reads from and writes to @pid's @mem,
 * which currently has @tag.
 */
static void check_kernel_access(pid_t pid, void *mem, bool private, u8 tag, u64 page)
{
	u64 *buf = malloc(page_size);
	struct iovec local = { .iov_base = buf, .iov_len = page_size };
	struct iovec remote = { .iov_base = mem, .iov_len = page_size };
	const ssize_t len = page_size;
	char path[64];
	ssize_t r;
	int fd;

	TEST_ASSERT(buf, "malloc() failed");

	r = process_vm_readv(pid, &local, 1, &remote, 1, 0);
	if (private) {
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "process_vm_readv(): r = %ld, errno = %d", (long)r, errno);
	} else {
		TEST_ASSERT_EQ(r, len);
		TEST_ASSERT(check_page(buf, tag, page, page_size) < 0,
			    "process_vm_readv() got unexpected contents");
	}

	fill_page(buf, tag, page, page_size);
	r = process_vm_writev(pid, &local, 1, &remote, 1, 0);
	if (private)
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "process_vm_writev(): r = %ld, errno = %d", (long)r, errno);
	else
		TEST_ASSERT_EQ(r, len);

	/* What a debugger uses, EIO is how procfs spells EFAULT. */
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	TEST_ASSERT(fd >= 0, "Failed to open %s", path);
	r = pread(fd, buf, page_size, (unsigned long)mem);
	if (private)
		TEST_ASSERT(r == -1 && (errno == EIO || errno == EFAULT),
			    "pread(/proc/pid/mem): r = %ld, errno = %d", (long)r, errno);
	else
		TEST_ASSERT_EQ(r, len);

	fill_page(buf, tag, page, page_size);
	r = pwrite(fd, buf, page_size, (unsigned long)mem);
	if (private)
		TEST_ASSERT(r == -1 && (errno == EIO || errno == EFAULT),
			    "pwrite(/proc/pid/mem): r = %ld, errno = %d", (long)r, errno);
	else
		TEST_ASSERT_EQ(r, len);

	kvm_close(fd);
	free(buf);
}

/* Likewise, for access that's possible only from within the process. */
static void check_own_access(void *mem, bool private, u8 tag, u64 page)
{
	u64 *buf = malloc(page_size);
	struct iovec iov = { .iov_base = mem, .iov_len = page_size };
	const ssize_t len = page_size;
	int fds[2];
	ssize_t r;

	TEST_ASSERT(buf, "malloc() failed");
	TEST_ASSERT(!pipe(fds), "pipe() failed");

	if (private)
		assert_private(mem);
	else
		assert_shared(mem, tag, page);

	/* write() reads the memory ... */
	r = write(fds[1], mem, page_size);
	if (private) {
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "write(): r = %ld, errno = %d", (long)r, errno);
	} else {
		TEST_ASSERT_EQ(r, len);
		TEST_ASSERT_EQ(read(fds[0], buf, page_size), len);
		TEST_ASSERT(check_page(buf, tag, page, page_size) < 0,
			    "write() wrote unexpected contents");
	}

	/* ... read() writes it, or leaves the data for somebody else ... */
	fill_page(buf, tag, page, page_size);
	TEST_ASSERT_EQ(write(fds[1], buf, page_size), len);
	r = read(fds[0], mem, page_size);
	if (private) {
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "read(): r = %ld, errno = %d", (long)r, errno);
		TEST_ASSERT_EQ(read(fds[0], buf, page_size), len);
	} else {
		TEST_ASSERT_EQ(r, len);
	}

	/* ... and these two want the page itself. */
	r = vmsplice(fds[1], &iov, 1, 0);
	if (private)
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "vmsplice(): r = %ld, errno = %d", (long)r, errno);
	else
		TEST_ASSERT_EQ(r, len);

	r = madvise(mem, page_size, MADV_POPULATE_WRITE);
	if (private)
		TEST_ASSERT(r == -1 && errno == EFAULT,
			    "MADV_POPULATE_WRITE: r = %ld, errno = %d", (long)r, errno);
	else
		TEST_ASSERT_EQ(r, 0);

	kvm_close(fds[0]);
	kvm_close(fds[1]);
	free(buf);

	check_kernel_access(getpid(), mem, private, tag, page);
}

/* Promise 6: access from the process that converted the memory. */
TEST_F(gmem, no_host_access)
{
	struct iovec local, remote[4];
	u64 i;
	u8 *mem;

	make_mixed(self);

	for (i = 0; i < NR_PAGES; i++)
		check_own_access(page_hva(self, i), self->pages[i].private,
				 self->pages[i].tag, i);
	check_all(self);

	/* Access that starts in shared memory ends at private memory. */
	TEST_ASSERT(!self->pages[0].private && !self->pages[1].private &&
		    self->pages[2].private, "Unexpected state");
	for (i = 0; i < ARRAY_SIZE(remote); i++) {
		remote[i].iov_base = page_hva(self, i);
		remote[i].iov_len = page_size;
	}
	local.iov_len = ARRAY_SIZE(remote) * page_size;
	local.iov_base = calloc(1, local.iov_len);
	TEST_ASSERT(local.iov_base, "calloc() failed");
	TEST_ASSERT_EQ(process_vm_readv(getpid(), &local, 1, remote,
					ARRAY_SIZE(remote), 0), 2 * page_size);
	for (i = 0; i < ARRAY_SIZE(remote); i++)
		TEST_ASSERT(check_page(local.iov_base + i * page_size,
				       i < 2 ? self->pages[i].tag : 0, i,
				       page_size) < 0,
			    "Unexpected contents in page %lu", i);
	free(local.iov_base);

	/* A mapping that's established while memory is private is no better. */
	mem = mmap_gmem(self->fd, self->size);
	for (i = 0; i < NR_PAGES; i++)
		check_own_access(mem + i * page_size, self->pages[i].private,
				 self->pages[i].tag, i);
	kvm_munmap(mem, self->size);
	check_all(self);
}

/* Promise 6: all mappings are cut, no matter how many, and where they moved. */
TEST_F(gmem, no_host_access_other_mappings)
{
	u8 *maps[4];
	u64 i, j;
	void *p;

	host_fill(self, 0, NR_PAGES, 0x21);

	/* A second mapping, a partial one, and one that's moved, twice. */
	maps[0] = mmap_gmem(self->fd, self->size);
	maps[1] = __kvm_mmap(4 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			     self->fd, 6 * page_size);
	maps[2] = mmap_gmem(self->fd, self->size);
	maps[3] = kvm_mmap(self->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (i = 0; i < NR_PAGES; i++) {
		assert_shared(maps[0] + i * page_size, 0x21, i);
		assert_shared(maps[2] + i * page_size, 0x21, i);
		if (i >= 6 && i < 10)
			assert_shared(maps[1] + (i - 6) * page_size, 0x21, i);
	}

	p = mremap(maps[2], self->size, self->size, MREMAP_MAYMOVE | MREMAP_FIXED, maps[3]);
	TEST_ASSERT(p == maps[3], "mremap() failed");

	convert(self, 5, 3, ATTR_PRIVATE);

	/* The move of a mapping doesn't bring back access. */
	p = mremap(maps[3], self->size, self->size, MREMAP_MAYMOVE | MREMAP_FIXED, maps[2]);
	TEST_ASSERT(p == maps[2], "mremap() failed");

	for (j = 0; j < 2; j++) {
		for (i = 0; i < NR_PAGES; i++) {
			bool private = self->pages[i].private;

			check_own_access(maps[0] + i * page_size, private, 0x21, i);
			check_own_access(maps[2] + i * page_size, private, 0x21, i);
			if (i >= 6 && i < 10)
				check_own_access(maps[1] + (i - 6) * page_size,
						 private, 0x21, i);
		}
		check_all(self);

		/* And all of them get access back. */
		convert(self, 0, NR_PAGES, ATTR_SHARED);
	}
}

/*
 * A process that does things to memory on request, and waits in between.
 */
struct peer {
	pid_t pid;
	int to[2];
	int from[2];
};

static void peer_call(struct peer *peer, char cmd)
{
	char reply;

	TEST_ASSERT_EQ(write(peer->to[1], &cmd, 1), 1);
	TEST_ASSERT_EQ(read(peer->from[0], &reply, 1), 1);
	TEST_ASSERT_EQ(reply, cmd);
}

/* The peer itself checks access to pages with contents @tag. */
#define PEER_CHECK_SHARED	's'
#define PEER_CHECK_PRIVATE	'p'
#define PEER_TRACE_ME		't'
#define PEER_MOVE		'm'
#define PEER_EXIT		'x'

static void start_peer(struct peer *peer, u8 *mem, u64 nr, u8 tag, u64 first)
{
	u64 i;

	TEST_ASSERT(!pipe(peer->to) && !pipe(peer->from), "pipe() failed");

	peer->pid = fork();
	TEST_ASSERT(peer->pid >= 0, "fork() failed");
	if (peer->pid) {
		/* Have reads fail if the peer dies. */
		kvm_close(peer->to[0]);
		kvm_close(peer->from[1]);
		return;
	}
	kvm_close(peer->to[1]);
	kvm_close(peer->from[0]);

	for (;;) {
		void *old = mem;
		char cmd;

		TEST_ASSERT_EQ(read(peer->to[0], &cmd, 1), 1);
		switch (cmd) {
		case PEER_CHECK_SHARED:
		case PEER_CHECK_PRIVATE:
			for (i = 0; i < nr; i++)
				check_own_access(mem + i * page_size,
						 cmd == PEER_CHECK_PRIVATE,
						 tag, first + i);
			break;
		case PEER_TRACE_ME:
			TEST_ASSERT(!ptrace(PTRACE_TRACEME, 0, NULL, NULL),
				    "PTRACE_TRACEME failed");
			raise(SIGSTOP);
			break;
		case PEER_MOVE:
			mem = kvm_mmap(nr * page_size, PROT_NONE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1);
			TEST_ASSERT(mremap(old, nr * page_size, nr * page_size,
					   MREMAP_MAYMOVE | MREMAP_FIXED, mem) == mem,
				    "mremap() failed");
			break;
		case PEER_EXIT:
			break;
		default:
			TEST_FAIL("Unknown command %c", cmd);
		}
		TEST_ASSERT_EQ(write(peer->from[1], &cmd, 1), 1);
		if (cmd == PEER_EXIT)
			_exit(KSFT_PASS);
	}
}

static void stop_peer(struct peer *peer)
{
	int status;

	peer_call(peer, PEER_EXIT);
	TEST_ASSERT_EQ(waitpid(peer->pid, &status, 0), peer->pid);
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "Peer failed, wait status = 0x%x", status);
	kvm_close(peer->to[1]);
	kvm_close(peer->from[0]);
}

/*
 * Promise 6: access from a process that inherited the mapping, and access to
 * that process's memory.
 */
TEST_F(gmem, no_host_access_other_processes)
{
	struct peer peer;
	u64 i;

	host_fill(self, 0, NR_PAGES, 0x31);
	start_peer(&peer, page_hva(self, 4), 4, 0x31, 4);
	peer_call(&peer, PEER_CHECK_SHARED);

	convert(self, 2, 10, ATTR_PRIVATE);
	peer_call(&peer, PEER_CHECK_PRIVATE);
	for (i = 0; i < NR_PAGES; i++)
		check_kernel_access(peer.pid, page_hva(self, i),
				    self->pages[i].private, 0x31, i);
	check_all(self);

	/* The mapping is moved while memory is private, and while it's shared. */
	peer_call(&peer, PEER_MOVE);
	peer_call(&peer, PEER_CHECK_PRIVATE);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	peer_call(&peer, PEER_CHECK_SHARED);
	peer_call(&peer, PEER_MOVE);
	peer_call(&peer, PEER_CHECK_SHARED);
	convert(self, 4, 4, ATTR_PRIVATE);
	peer_call(&peer, PEER_CHECK_PRIVATE);

	/* A process that's forked off while memory is private. */
	stop_peer(&peer);
	start_peer(&peer, page_hva(self, 4), 4, 0x31, 4);
	peer_call(&peer, PEER_CHECK_PRIVATE);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	peer_call(&peer, PEER_CHECK_SHARED);

	stop_peer(&peer);
	check_all(self);
}

/* Promise 6: debuggers. */
TEST_F(gmem, no_host_access_ptrace)
{
	const char cmd = PEER_TRACE_ME;
	struct peer peer;
	int i, status;
	char reply;
	long word;
	void *mem;

	host_fill(self, 0, NR_PAGES, 0x32);
	start_peer(&peer, self->mem, NR_PAGES, 0x32, 0);
	peer_call(&peer, PEER_CHECK_SHARED);

	TEST_ASSERT_EQ(write(peer.to[1], &cmd, 1), 1);
	TEST_ASSERT_EQ(waitpid(peer.pid, &status, 0), peer.pid);
	TEST_ASSERT(WIFSTOPPED(status), "wait status = 0x%x", status);

	convert(self, 0, NR_PAGES / 2, ATTR_PRIVATE);
	for (i = 0; i < NR_PAGES; i++) {
		mem = page_hva(self, i);

		/* EIO is how ptrace() spells EFAULT. */
		errno = 0;
		word = ptrace(PTRACE_PEEKDATA, peer.pid, mem, NULL);
		if (self->pages[i].private)
			TEST_ASSERT(word == -1 && (errno == EIO || errno == EFAULT),
				    "PEEKDATA, page %d: 0x%lx, errno = %d", i, word, errno);
		else
			TEST_ASSERT(!errno && word == page_word(0x32, i, 0),
				    "PEEKDATA, page %d: 0x%lx, errno = %d", i, word, errno);

		word = ptrace(PTRACE_POKEDATA, peer.pid, mem, page_word(0x32, i, 0));
		if (self->pages[i].private)
			TEST_ASSERT(word == -1 && (errno == EIO || errno == EFAULT),
				    "POKEDATA, page %d: %ld, errno = %d", i, word, errno);
		else
			TEST_ASSERT(!word, "POKEDATA, page %d: errno = %d", i, errno);
	}
	check_all(self);

	TEST_ASSERT(!ptrace(PTRACE_DETACH, peer.pid, NULL, NULL), "PTRACE_DETACH failed");
	TEST_ASSERT_EQ(read(peer.from[0], &reply, 1), 1);
	TEST_ASSERT_EQ(reply, cmd);
	stop_peer(&peer);
}

/*
 * Promise 8: if there's nothing to do, nothing is done: the host's PTEs are
 * still there, and so are the guest's mappings.
 */
TEST_F(gmem, nop)
{
	u64 i, nr_faults;
	struct pin pin;

	/* All shared. */
	host_fill(self, 0, NR_PAGES, 0x61);
	guest_touch(self, 0, NR_PAGES);
	nr_faults = nr_guest_faults(self->vcpu);

	convert(self, 0, NR_PAGES, ATTR_SHARED);
	convert(self, 3, 5, ATTR_SHARED);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(host_is_mapped(page_hva(self, i)),
			    "Page %lu was unmapped", i);
	guest_touch(self, 0, NR_PAGES);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults);

	/* References on pages that won't be converted don't matter. */
	pin_page(&pin, page_hva(self, 4));
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	unpin_page(&pin);
	check_all(self);

	/* A private half, and shared neighbors. */
	convert(self, 4, 8, ATTR_PRIVATE);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(host_can_read(page_hva(self, i)) == (i < 4 || i >= 12),
			    "Page %lu has the wrong state", i);
	guest_touch(self, 0, NR_PAGES);
	nr_faults = nr_guest_faults(self->vcpu);

	convert(self, 4, 8, ATTR_PRIVATE);
	convert(self, 5, 1, ATTR_PRIVATE);
	convert(self, 0, 4, ATTR_SHARED);
	convert(self, 12, 4, ATTR_SHARED);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(host_is_mapped(page_hva(self, i)) == (i < 4 || i >= 12),
			    "Page %lu is %smapped", i,
			    i < 4 || i >= 12 ? "not " : "");
	guest_touch(self, 0, NR_PAGES);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults);
	check_all(self);
}

/* Promise 8: a conversion doesn't reach beyond its range. */
TEST_F(gmem, neighbors)
{
	u64 i, nr_faults;

	host_fill(self, 0, NR_PAGES, 0x62);
	guest_touch(self, 0, NR_PAGES);
	nr_faults = nr_guest_faults(self->vcpu);

	convert(self, 6, 3, ATTR_PRIVATE);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(host_is_mapped(page_hva(self, i)) == (i < 6 || i >= 9),
			    "Page %lu is %smapped", i,
			    i < 6 || i >= 9 ? "not " : "");
	guest_touch(self, 0, 6);
	guest_touch(self, 9, NR_PAGES - 9);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults);

	/* What was converted is mapped anew. */
	guest_touch(self, 6, 3);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults + 3);

	convert(self, 7, 1, ATTR_SHARED);
	guest_touch(self, 0, 7);
	guest_touch(self, 8, NR_PAGES - 8);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults + 3);
	guest_touch(self, 7, 1);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults + 4);
	check_all(self);
}

/*
 * Promise 8: in a mixed range, only pages that are converted lose their guest
 * mappings.
 */
TEST_F(gmem, mixed)
{
	const u64 attributes[] = { ATTR_PRIVATE, ATTR_SHARED };
	u64 i, j, nr_faults, nr_converted;

	for (i = 0; i < ARRAY_SIZE(attributes); i++) {
		convert(self, 0, NR_PAGES, ATTR_SHARED);
		make_mixed(self);
		nr_faults = nr_guest_faults(self->vcpu);

		nr_converted = 0;
		for (j = 1; j < NR_PAGES - 1; j++)
			nr_converted += self->pages[j].private != !!attributes[i];
		convert(self, 1, NR_PAGES - 2, attributes[i]);

		guest_touch(self, 0, NR_PAGES);
		TEST_ASSERT(nr_guest_faults(self->vcpu) == nr_faults + nr_converted,
			    "Converted %lu of %u pages to %s, but the guest faulted on %lu",
			    nr_converted, NR_PAGES - 2,
			    attributes[i] ? "private" : "shared",
			    (nr_guest_faults(self->vcpu) - nr_faults));
		check_all(self);
	}
}

/*
 * Promise 13: a page that was found to be broken is reported as such, to the host
 * by SIGBUS and to the guest's VMM by KVM_RUN, in either state, and nobody dies.
 */
static void guest_finds_poison(gmem_data *self, u64 page)
{
	struct guest_cmd cmd = {
		.op = GUEST_TOUCH,
		.gva = page_gpa(page),
		.nr = 1,
	};
	struct kvm_run *run = self->vcpu->run;
	int r;

	write_guest_global(self->vm, guest_cmd, cmd);
	r = _vcpu_run(self->vcpu);
	TEST_ASSERT(r == -1 && errno == EHWPOISON, "r = %d, errno = %d", r, errno);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, page_gpa(page));
	TEST_ASSERT_EQ(run->memory_fault.flags,
		       FAULT_EXITS_TELL_PRIVATE && self->pages[page].private ?
		       KVM_MEMORY_EXIT_FLAG_PRIVATE : 0);
}

TEST_F(gmem, poison)
{
	const u64 bad = 5;
	u64 *hva = (u64 *)page_hva(self, bad);
	int i;

	if (access("/proc/sys/vm/memory_failure_recovery", F_OK) || geteuid())
		SKIP(return, "Needs CONFIG_MEMORY_FAILURE and root");

	host_fill(self, 0, NR_PAGES, 0x65);
	guest_touch(self, 0, NR_PAGES);

	/* Its contents are lost, and whoever maps the page learns it right away. */
	TEST_ASSERT_EQ(host_access(hva, HOST_POISON), BUS_MCEERR_AR);

	for (i = 0; i < 3; i++) {
		TEST_ASSERT_EQ(host_access(hva, HOST_READ), BUS_MCEERR_AR);

		convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		TEST_ASSERT_EQ(host_access(hva, HOST_READ), BUS_MCEERR_AR);
		guest_finds_poison(self, bad);

		convert(self, 0, NR_PAGES, ATTR_SHARED);
		guest_finds_poison(self, bad);
	}

	/*
	 * Without the page, there's nothing wrong, and the guest can go on, as can
	 * the host once it has forgotten what its page tables say.
	 */
	punch_hole(self->fd, bad * page_size, page_size);
	TEST_ASSERT(mmap(self->mem, self->size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, self->fd, 0) == self->mem,
		    "Failed to map the memory again");
	self->pages[bad].tag = 0;
	guest_touch(self, bad, 1);
	check_all(self);
}

static void write_file(const char *path, const char *val)
{
	int fd = open(path, O_WRONLY);

	TEST_ASSERT(fd >= 0, "Failed to open %s", path);
	TEST_ASSERT_EQ(write(fd, val, strlen(val)), strlen(val));
	kvm_close(fd);
}

#define CORRUPT_PFN		"/sys/kernel/debug/hwpoison/corrupt-pfn"

/* Returns 0 or errno. */
static int write_pfn(const char *path, u64 pfn)
{
	int r, fd = open(path, O_WRONLY);

	TEST_ASSERT(fd >= 0, "Failed to open %s", path);
	r = dprintf(fd, "0x%lx", pfn) > 0 ? 0 : errno;
	kvm_close(fd);
	return r;
}

/* guest_memfd keeps bad pages, whereas memory_failure() wants to get rid of them. */
static void poison_pfn(u64 pfn)
{
	int r = write_pfn(CORRUPT_PFN, pfn);

	TEST_ASSERT(!r || r == EBUSY, "Failed to poison 0x%lx, errno = %d", pfn, r);
}

/*
 * Promise 13: memory goes bad whoever it belongs to, and isn't good again just
 * because it's someone else's.
 */
TEST_F(gmem, poison_private)
{
	const u64 bad = 5;
	u64 *hva = (u64 *)page_hva(self, bad);
	u64 pfn;

	if (access(CORRUPT_PFN, F_OK) || geteuid())
		SKIP(return, "Needs CONFIG_HWPOISON_INJECT and root");

	host_fill(self, 0, NR_PAGES, 0x69);
	guest_touch(self, 0, NR_PAGES);
	pfn = host_pfn(hva);

	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	guest_touch(self, 0, NR_PAGES);
	poison_pfn(pfn);
	guest_finds_poison(self, bad);
	assert_private(hva);

	/* Neighbors are fine, and the host gets to know, and only that. */
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	TEST_ASSERT_EQ(host_access(hva, HOST_READ), BUS_MCEERR_AR);
	guest_finds_poison(self, bad);
	assert_shared(page_hva(self, bad - 1), 0x69, bad - 1);
	assert_shared(page_hva(self, bad + 1), 0x69, bad + 1);

	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	guest_finds_poison(self, bad);
}

#define UNPOISON_PFN		"/sys/kernel/debug/hwpoison/unpoison-pfn"
#define KPAGEFLAGS		"/proc/kpageflags"

static u64 page_flags(u64 pfn)
{
	int fd = open(KPAGEFLAGS, O_RDONLY);
	u64 flags;

	TEST_ASSERT_EQ(pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)),
		       sizeof(flags));
	kvm_close(fd);
	return flags;
}

/* Is the memory as fill_page() left it, as far as root can tell? */
static bool memory_is_filled(u64 pfn, u8 tag, u64 page)
{
	u64 pa = pfn * page_size, *mem = malloc(page_size);
	int i, fd = open("/proc/kcore", O_RDONLY);
	bool filled = false;
	struct elf64_hdr ehdr;
	struct elf64_phdr phdr;

	if (pread(fd, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr))
		ehdr.e_phnum = 0;

	for (i = 0; i < ehdr.e_phnum && !filled; i++) {
		TEST_ASSERT_EQ(pread(fd, &phdr, sizeof(phdr),
				     ehdr.e_phoff + i * sizeof(phdr)), sizeof(phdr));
		if (phdr.p_type == PT_LOAD && pa - phdr.p_paddr < phdr.p_filesz)
			filled = pread(fd, mem, page_size,
				       phdr.p_offset + pa - phdr.p_paddr) == page_size &&
				 check_page(mem, tag, page, page_size) < 0;
	}
	close(fd);
	free(mem);
	return filled;
}

/*
 * Returns the pfn of a page that was allocated, and never written, or 0.  There's no
 * way to ask for it, but memory that is free is used again.
 */
static u64 never_written_pfn(gmem_data *self, u64 page, u8 tag)
{
	u64 pfn, flags;
	int i;

	for (i = 0; i < 20; i++) {
		host_fill(self, page, 1, tag);
		pfn = host_pfn(page_hva(self, page));

		punch_hole(self->fd, page * page_size, page_size);
		kvm_fallocate(self->fd, FALLOC_FL_KEEP_SIZE, page * page_size, page_size);
		self->pages[page].tag = 0;

		/* This drains LRU batches, and so has the page's flags set. */
		TEST_ASSERT(!mlock(&self->vm, 1) && !munlock(&self->vm, 1),
			    "mlock() failed");
		flags = page_flags(pfn);
		if (flags & BIT_ULL(KPF_UNEVICTABLE) && !(flags & BIT_ULL(KPF_UPTODATE)))
			return pfn;
	}
	return 0;
}

/* Promise 13: a page that goes bad before it is written isn't written any more. */
TEST_F(gmem, poison_never_written)
{
	const u64 bad = 5;
	u64 *hva = (u64 *)page_hva(self, bad);
	bool filled, lost = true;
	u64 pfn;
	int i;

	if (access(UNPOISON_PFN, F_OK) || access(KPAGEFLAGS, R_OK) || geteuid())
		SKIP(return, "Needs CONFIG_HWPOISON_INJECT, CONFIG_PROC_PAGE_MONITOR and root");

	pin_self_to_any_cpu();

	/* Somebody else may get at the page before its memory is looked at. */
	for (i = 0; i < 20 && lost; i++) {
		pfn = never_written_pfn(self, bad, 0x6b);
		if (!pfn)
			SKIP(return, "Memory that is free isn't used again");

		filled = memory_is_filled(pfn, 0x6b, bad);
		poison_pfn(pfn);
		TEST_ASSERT_EQ(host_access(hva, HOST_READ), BUS_MCEERR_AR);
		TEST_ASSERT_EQ(host_access(hva, HOST_WRITE), BUS_MCEERR_AR);
		guest_finds_poison(self, bad);

		convert(self, bad, 1, ATTR_PRIVATE);
		guest_finds_poison(self, bad);
		assert_private(hva);

		convert(self, bad, 1, ATTR_SHARED);
		TEST_ASSERT_EQ(host_access(hva, HOST_READ), BUS_MCEERR_AR);
		TEST_ASSERT(!(page_flags(pfn) & BIT_ULL(KPF_UPTODATE)),
			    "A poisoned page was written");

		punch_hole(self->fd, bad * page_size, page_size);
		TEST_ASSERT_EQ(write_pfn(UNPOISON_PFN, pfn), 0);
		lost = filled && !memory_is_filled(pfn, 0x6b, bad);
	}
	TEST_ASSERT(!lost, "A poisoned page was cleared");

	guest_touch(self, bad, 1);
	check_all(self);
}

/* Promise 14: policies apply to memory in either state, no matter who wants it. */
static void expect_nodes(gmem_data *self, const int *nodes, int line)
{
	int status[NR_PAGES];
	void *pages[NR_PAGES];
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		pages[i] = page_hva(self, i);
		TEST_ASSERT(host_can_read(pages[i]), "Line %d: page %lu", line, i);
	}
	kvm_move_pages(0, NR_PAGES, pages, NULL, status, 0);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(status[i] == nodes[i],
			    "Line %d: page %lu should be on node %d, is on node %d",
			    line, i, nodes[i], status[i]);
}

TEST_F(gmem, numa)
{
	const unsigned long masks[] = { 1, 2 };
	int nodes[NR_PAGES];
	u64 i;

	if (!is_multi_numa_node_system())
		SKIP(return, "Needs two NUMA nodes");

	for (i = 0; i < NR_PAGES; i++) {
		nodes[i] = i / 4 & 1;
		kvm_mbind(page_hva(self, i), page_size, MPOL_BIND,
			  &masks[nodes[i]], 8, 0);
	}

	/* As the guest allocates private memory... */
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	guest_fill(self, 0, NR_PAGES, 0x66);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	expect_nodes(self, nodes, __LINE__);
	check_all(self);

	/* ...and shared memory, and as the host does. */
	for (i = 0; i < 2; i++) {
		punch_hole(self->fd, 0, self->size);
		convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		convert(self, 0, NR_PAGES, ATTR_SHARED);
		if (i)
			guest_fill(self, 0, NR_PAGES, 0x67);
		else
			host_fill(self, 0, NR_PAGES, 0x68);
		expect_nodes(self, nodes, __LINE__);
		check_all(self);
	}
}

/* Promise 9: holes are zero, and as private, or shared, as before. */
TEST_F(gmem, punch_hole)
{
	u64 i, j;

	make_mixed(self);

	for (i = 0; i < NR_PAGES; i += 5) {
		u64 nr = min_t(u64, NR_PAGES - i, 3);

		punch_hole(self->fd, i * page_size, nr * page_size);
		for (j = i; j < i + nr; j++)
			self->pages[j].tag = 0;
		check_all(self);
	}

	/* State is kept for memory that isn't there, too. */
	punch_hole(self->fd, 0, self->size);
	punch_hole(self->fd, 0, self->size);
	for (i = 0; i < NR_PAGES; i++)
		self->pages[i].tag = 0;
	convert(self, 5, 6, ATTR_PRIVATE);
	check_all(self);

	/* The hole is usable, by whomever it belongs to. */
	guest_fill(self, 0, NR_PAGES, 0x71);
	check_all(self);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
	punch_hole(self->fd, 0, self->size);
	for (i = 0; i < NR_PAGES; i++)
		self->pages[i].tag = 0;
	check_host(self);
	host_fill(self, 0, NR_PAGES, 0x72);
	check_all(self);
}

/*
 * Promise 9: a hole can be punched under a reference, which then isn't one on
 * the file's memory anymore.
 */
TEST_F(gmem, punch_hole_pinned)
{
	struct pin pin;

	host_fill(self, 0, NR_PAGES, 0x73);
	pin_page(&pin, page_hva(self, 4));
	TEST_ASSERT_EQ(try_convert(self->fd, 0, self->size, ATTR_PRIVATE), EAGAIN);

	punch_hole(self->fd, 4 * page_size, page_size);
	self->pages[4].tag = 0;
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_all(self);

	unpin_page_and_check(&pin, 0x73, 4);
	check_all(self);
}

/*
 * Promise 10: two memslots for parts of one file, at odd offsets, with a gap
 * in between and in reverse order.
 */
TEST_F(gmem, slots_at_odd_offsets)
{
	const struct {
		u64 gpa_page;
		u64 first;
		u64 nr;
	} slots[] = {
		{ 41, 3, 5 },
		{ 33, 9, 6 },
	};
	/* In a slot, in both, in none, and beyond. */
	const struct {
		u64 first;
		u64 nr;
		bool private;
	} conversions[] = {
		{ 4, 1, true }, { 2, 10, true }, { 8, 1, false },
		{ 15, 2, true }, { 7, 5, false }, { 0, 17, false },
	};
	const u64 nr_pages = 17, size = nr_pages * page_size;
	struct {
		bool private;
		u8 tag;
	} pages[17] = {};
	u64 i, j, first;
	u8 *mem, tag;
	int fd;

	fd = vm_create_guest_memfd(self->vm, size, MMAP_SHARED);
	mem = mmap_gmem(fd, size);

	for (i = 0; i < ARRAY_SIZE(slots); i++)
		vm_set_user_memory_region2(self->vm, TEST_SLOT + 1 + i,
					   KVM_MEM_GUEST_MEMFD,
					   page_gpa(slots[i].gpa_page),
					   slots[i].nr * page_size,
					   mem + slots[i].first * page_size,
					   fd, slots[i].first * page_size);

	for (i = 0; i < ARRAY_SIZE(conversions); i++) {
		tag = 0x10 + i;
		for (j = 0; j < nr_pages; j++) {
			if (pages[j].private)
				continue;
			fill_page((u64 *)(mem + j * page_size), tag, j, page_size);
			pages[j].tag = tag;
		}
		for (j = 0; j < ARRAY_SIZE(slots); j++) {
			guest_do(self->vcpu, GUEST_FILL, page_gpa(slots[j].gpa_page),
				 slots[j].first, slots[j].nr, tag);
			for (first = 0; first < slots[j].nr; first++)
				pages[slots[j].first + first].tag = tag;
		}

		first = conversions[i].first;
		TEST_ASSERT_EQ(try_convert(fd, first * page_size,
					   conversions[i].nr * page_size,
					   conversions[i].private ? ATTR_PRIVATE :
								    ATTR_SHARED), 0);
		for (j = first; j < first + conversions[i].nr; j++)
			pages[j].private = conversions[i].private;

		for (j = 0; j < nr_pages; j++) {
			if (pages[j].private)
				assert_private(mem + j * page_size);
			else
				assert_shared(mem + j * page_size, pages[j].tag, j);
		}
		for (j = 0; j < ARRAY_SIZE(slots); j++)
			guest_do(self->vcpu, GUEST_CHECK, page_gpa(slots[j].gpa_page),
				 slots[j].first, slots[j].nr, tag);
	}

	/* The other file isn't affected. */
	check_all(self);

	kvm_munmap(mem, size);
	kvm_close(fd);
}

/*
 * Promise 10: memslots come and go, state and contents stay with the file, and
 * can be changed while there's no memslot.
 */
TEST_F(gmem, slot_recreation)
{
	gpa_t gpa = page_gpa(37);
	u64 i, round;

	make_mixed(self);
	guest_fill(self, 0, NR_PAGES, 0x22);
	check_all(self);

	for (round = 0; round < 3; round++) {
		vm_set_user_memory_region2(self->vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD,
					   TEST_GPA, 0, NULL, -1, 0);
		check_host(self);

		convert(self, round * 3, 5, round & 1 ? ATTR_SHARED : ATTR_PRIVATE);
		check_host(self);

		/* Somewhere else, with less of the file. */
		vm_set_user_memory_region2(self->vm, TEST_SLOT + 1, KVM_MEM_GUEST_MEMFD,
					   gpa, 7 * page_size, NULL, self->fd,
					   5 * page_size);
		guest_do(self->vcpu, GUEST_CHECK, gpa, 5, 7, 0x22 + round);
		convert(self, 1 + round, 9, round & 1 ? ATTR_SHARED : ATTR_PRIVATE);
		check_host(self);
		guest_do(self->vcpu, GUEST_CHECK, gpa, 5, 7, 0x22 + round);

		vm_set_user_memory_region2(self->vm, TEST_SLOT + 1, KVM_MEM_GUEST_MEMFD,
					   gpa, 0, NULL, -1, 0);

		/* And back. */
		vm_set_user_memory_region2(self->vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD,
					   TEST_GPA, self->size, self->mem, self->fd, 0);
		check_all(self);
		guest_fill(self, 0, NR_PAGES, 0x23 + round);
	}

	convert(self, 0, NR_PAGES, ATTR_SHARED);
	for (i = 0; i < NR_PAGES; i++)
		assert_shared(page_hva(self, i), 0x22 + round, i);
}

/*
 * Promise 10: the file works without its VM.  The right to convert stays with who
 * created it.
 */
TEST_F(gmem, vm_is_gone)
{
	u64 error_offset;
	struct pin pin;
	int round;

	make_mixed(self);
	kvm_vm_free(self->vm);
	self->vm = NULL;
	self->vcpu = NULL;
	check_host(self);
	run_in_child(eio_in_child, self);
	eio_in_receiver(self);
	check_host(self);

	for (round = 0; round < 3; round++) {
		convert(self, 0, NR_PAGES, ATTR_PRIVATE);
		check_host(self);
		convert(self, 0, NR_PAGES, ATTR_SHARED);
		check_host(self);

		host_fill(self, 0, NR_PAGES, 0x24 + round);
		convert(self, round, 5, ATTR_PRIVATE);
		check_host(self);
		convert(self, 0, NR_PAGES, ATTR_SHARED);

		pin_page(&pin, page_hva(self, 6));
		TEST_ASSERT_EQ(__try_convert(self->fd, 0, self->size, ATTR_PRIVATE,
					     &error_offset), EAGAIN);
		TEST_ASSERT_EQ(error_offset, 6 * page_size);
		unpin_page(&pin);
		check_host(self);
	}

	punch_hole(self->fd, 0, self->size);
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	memset(self->pages, 0, sizeof(self->pages));
	check_host(self);
}

/* Promise 10: mappings, of the host and of the guest, work without the fd. */
TEST_F(gmem, fd_is_closed)
{
	struct guest_cmd cmd = {};
	u64 i;
	int r;

	make_mixed(self);
	kvm_close(self->fd);
	self->fd = -1;

	check_all(self);
	for (i = 0; i < NR_PAGES; i++) {
		if (!self->pages[i].private)
			host_fill(self, i, 1, 0x27);
	}
	check_all(self);
	guest_fill(self, 0, NR_PAGES, 0x28);
	check_all(self);

	/* The last user is gone, the guest has no memory anymore. */
	kvm_munmap(self->mem, self->size);
	self->mem = NULL;

	guest_touch(self, 0, 0);
	cmd.op = GUEST_TOUCH;
	cmd.gva = TEST_GPA;
	cmd.nr = 1;
	write_guest_global(self->vm, guest_cmd, cmd);
	r = _vcpu_run(self->vcpu);
	TEST_ASSERT(r == -1 && errno == EFAULT, "r = %d, errno = %d", r, errno);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.gpa, TEST_GPA);
}

/*
 * Promise 10, and the library: the guest converts memory that's backed by two
 * files, with one call.
 */
TEST_F(gmem, guest_driven)
{
	const gpa_t gpa = page_gpa(32);
	struct guest_cmd cmd = {
		.gva = gpa,
		.nr = 16,
	};
	u8 *hva[16];
	u64 i, first, nr;
	int round;

	/* Two memory regions, back to back, each with its own guest_memfd. */
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, gpa,
				    TEST_SLOT + 1,
				    vm_calc_num_guest_pages(self->vm->mode, 6 * page_size),
				    KVM_MEM_GUEST_MEMFD);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS,
				    gpa + 6 * page_size, TEST_SLOT + 2,
				    vm_calc_num_guest_pages(self->vm->mode, 10 * page_size),
				    KVM_MEM_GUEST_MEMFD);

	for (i = 0; i < 16; i++) {
		hva[i] = addr_gpa2hva(self->vm, gpa + i * page_size);
		assert_shared(hva[i], 0, i);
		fill_page((u64 *)hva[i], 0x29, i, page_size);
	}
	guest_do(self->vcpu, GUEST_CHECK, gpa, 0, 16, 0x29);

	for (round = 0; round < 4; round++) {
		first = 2 + round;
		nr = 12 - 2 * round;

		cmd.op = GUEST_CONVERT;
		cmd.private = true;
		cmd.gva = gpa + first * page_size;
		cmd.nr = nr;
		guest_run(self->vcpu, &cmd);

		for (i = 0; i < 16; i++) {
			if (i >= first && i < first + nr)
				assert_private(hva[i]);
			else
				assert_shared(hva[i], 0x29 + round, i);
		}
		guest_do(self->vcpu, GUEST_CHECK, gpa, 0, 16, 0x29 + round);
		guest_do(self->vcpu, GUEST_FILL, gpa, 0, 16, 0x2a + round);

		cmd.private = false;
		guest_run(self->vcpu, &cmd);
		for (i = 0; i < 16; i++)
			assert_shared(hva[i], 0x2a + round, i);
	}
	check_all(self);

	vm_mem_set_private(self->vm, gpa + 5 * page_size, 2 * page_size);
	for (i = 0; i < 16; i++) {
		if (i == 5 || i == 6)
			assert_private(hva[i]);
		else
			assert_shared(hva[i], 0x29 + round, i);
	}
	vm_mem_set_shared(self->vm, gpa, 16 * page_size);
	for (i = 0; i < 16; i++)
		assert_shared(hva[i], 0x29 + round, i);
}

/*
 * On a VM that tracks attributes in guest_memfd, a memslot takes all of its
 * memory from guest_memfd, even if the guest_memfd can't be mapped and shared
 * memory is thus of no use to the host.
 */
TEST_F(gmem, not_mappable)
{
	const u64 flags[] = { 0, GUEST_MEMFD_FLAG_INIT_SHARED };
	const gpa_t gpa = page_gpa(32);
	const u64 size = 4 * page_size;
	u8 *decoy;
	int fd, i, j;
	void *mem;

	decoy = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(decoy, 0xee, size);

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = vm_create_guest_memfd(self->vm, size, flags[i]);
		mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		TEST_ASSERT(mem == MAP_FAILED, "guest_memfd can be mapped");

		vm_set_user_memory_region2(self->vm, TEST_SLOT + 1, KVM_MEM_GUEST_MEMFD,
					   gpa, size, decoy, fd, 0);

		guest_do(self->vcpu, GUEST_CHECK, gpa, 0, 4, 0);
		guest_do(self->vcpu, GUEST_FILL, gpa, 0, 4, 0x2b);

		TEST_ASSERT_EQ(try_convert(fd, page_size, 2 * page_size, ATTR_SHARED), 0);
		guest_do(self->vcpu, GUEST_CHECK, gpa, 0, 4, 0x2b);
		TEST_ASSERT_EQ(try_convert(fd, 0, size, ATTR_PRIVATE), 0);
		guest_do(self->vcpu, GUEST_CHECK, gpa, 0, 4, 0x2b);
		TEST_ASSERT_EQ(try_convert(fd, 0, size, ATTR_SHARED), 0);
		guest_do(self->vcpu, GUEST_CHECK, gpa, 0, 4, 0x2b);
		guest_do(self->vcpu, GUEST_FILL, gpa, 0, 4, 0x2c);

		vm_set_user_memory_region2(self->vm, TEST_SLOT + 1, KVM_MEM_GUEST_MEMFD,
					   gpa, 0, NULL, -1, 0);
		kvm_close(fd);

		for (j = 0; j < size; j++)
			TEST_ASSERT(decoy[j] == 0xee, "The guest got at other memory");
	}
	kvm_munmap(decoy, size);
}

/* New files have the state that their flags ask for, all the way. */
TEST_F(gmem, initial_state)
{
	u8 *mem;
	int fd, i;

	for (i = 0; i < 2; i++) {
		fd = vm_create_guest_memfd(self->vm, self->size,
					   i ? MMAP_SHARED : MMAP_PRIVATE);
		mem = mmap_gmem(fd, self->size);
		if (i) {
			assert_shared(mem, 0, 0);
			assert_shared(mem + self->size - page_size, 0, 0);
		} else {
			assert_private(mem);
			assert_private(mem + self->size - page_size);
		}
		kvm_munmap(mem, self->size);
		kvm_close(fd);
	}
}

/* Promises 1, 4, 6, 7 and 9, in whatever order the dice say. */
TEST_F(gmem, random)
{
	struct kvm_random_state rng = new_rng();
	u64 i, j, first, nr, error_offset;
	int r;

	TEST_ASSERT(rng.seed, "The random number generator needs a seed");

	for (i = 0; i < 400; i++) {
		struct pin pin;
		bool expect_eagain;
		u64 attributes;
		u64 pinned;

		first = kvm_random_u32_in_range(&rng, 0, NR_PAGES - 1);
		nr = kvm_random_u32_in_range(&rng, 1, NR_PAGES - first);
		attributes = kvm_random_bool(&rng) ? ATTR_PRIVATE : ATTR_SHARED;

		switch (kvm_random_u32_in_range(&rng, 0, 5)) {
		case 0:
		case 1:
			convert(self, first, nr, attributes);
			break;
		case 2:
			for (j = first; j < first + nr; j++) {
				if (!self->pages[j].private)
					host_fill(self, j, 1, 1 + i % 255);
			}
			break;
		case 3:
			guest_fill(self, first, nr, 1 + i % 255);
			break;
		case 4:
			punch_hole(self->fd, first * page_size, nr * page_size);
			for (j = first; j < first + nr; j++)
				self->pages[j].tag = 0;
			break;
		case 5:
			pinned = kvm_random_u32_in_range(&rng, 0, NR_PAGES - 1);
			if (self->pages[pinned].private)
				break;

			pin_page(&pin, page_hva(self, pinned));
			expect_eagain = attributes && pinned >= first && pinned < first + nr;
			r = __try_convert(self->fd, first * page_size, nr * page_size,
					  attributes, &error_offset);
			if (expect_eagain) {
				TEST_ASSERT_EQ(r, EAGAIN);
				TEST_ASSERT_EQ(error_offset, pinned * page_size);
			} else {
				TEST_ASSERT_EQ(r, 0);
				for (j = first; j < first + nr; j++)
					self->pages[j].private = attributes;
			}
			unpin_page_and_check(&pin, self->pages[pinned].tag, pinned);
			break;
		}

		/* Have memory in the hands of the host, the guest, or both. */
		if (kvm_random_bool(&rng))
			check_host(self);
		if (kvm_random_bool(&rng))
			check_guest(self);
	}
	check_all(self);
}

/*
 * What can be seen from the outside
 */

static void __check_info(gmem_data *self, u64 flags, u64 populated, u64 converted,
			 u64 refused, int line)
{
	struct gmem_info info, expected = {
		.size = self->size,
		.flags = flags,
		.populated = populated,
		.converted = converted,
		.refused = refused,
	};
	u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		expected.private += self->pages[i].private;
		expected.ranges += !i || self->pages[i].private !=
					 self->pages[i - 1].private;
	}

	gmem_read_info(self->fd, &info);
	TEST_ASSERT(!memcmp(&info, &expected, sizeof(info)),
		    "Line %d: size %llu flags 0x%llx populated %llu private %llu ranges %llu converted %llu refused %llu, expected %llu 0x%llx %llu %llu %llu %llu %llu",
		    line, info.size, info.flags, info.populated, info.private,
		    info.ranges, info.converted, info.refused,
		    expected.size, expected.flags, expected.populated,
		    expected.private, expected.ranges, expected.converted,
		    expected.refused);
}

#define check_info(self, populated, converted, refused)			\
	__check_info(self, variant->flags, populated, converted, refused, __LINE__)

/* fdinfo counts what is there and what happened, and nothing else. */
TEST_F(gmem, fdinfo)
{
	const u64 setup = !(variant->flags & GUEST_MEMFD_FLAG_INIT_SHARED);
	struct kvm_memory_attributes2 attr;
	struct pin pin;

	check_info(self, 0, setup, 0);

	/* Conversions don't allocate.  What has nothing to do doesn't count. */
	convert(self, 2, 3, ATTR_PRIVATE);
	convert(self, 2, 2, ATTR_PRIVATE);
	check_info(self, 0, setup + 1, 0);

	host_fill(self, 5, 2, 0x11);
	guest_fill(self, 4, 1, 0x12);
	check_info(self, 3, setup + 1, 0);

	/* Neighbors merge, and part again. */
	convert(self, 5, 4, ATTR_PRIVATE);
	check_info(self, 3, setup + 2, 0);
	convert(self, 3, 1, ATTR_SHARED);
	check_info(self, 3, setup + 3, 0);

	pin_page(&pin, page_hva(self, 10));
	TEST_ASSERT_EQ(try_convert(self->fd, 0, self->size, ATTR_PRIVATE), EAGAIN);
	unpin_page(&pin);
	check_info(self, 4, setup + 3, 1);

	attr = good_arg(0, NR_PAGES, ATTR_PRIVATE);
	attr.flags = 1;
	__expect_error(self->fd, &attr, EINVAL, "flags");
	check_info(self, 4, setup + 3, 1);

	punch_hole(self->fd, 0, self->size);
	check_info(self, 0, setup + 3, 1);
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_info(self, 0, setup + 4, 1);
}

#define TRACE_INSTANCE	"/sys/kernel/tracing/instances/guest_memfd_test"
#define TRACE_EVENT	TRACE_INSTANCE "/events/kvm/kvm_gmem_set_mem_attributes/enable"

static void expect_event(FILE *trace, gmem_data *self, u64 page, u64 nr, u64 old,
			 u64 attributes, int ret, u64 error)
{
	char expected[256], line[512] = "";
	struct stat st;

	TEST_ASSERT(!fstat(self->fd, &st), "fstat() failed");
	snprintf(expected, sizeof(expected),
		 "kvm_gmem_set_mem_attributes: pid %d ino %lu 0x%014lx -- 0x%014lx [0x%lx] -> [0x%lx] ret %d error 0x%014lx\n",
		 getpid(), (unsigned long)st.st_ino, page, page + nr, old,
		 attributes, ret, error);

	while (fgets(line, sizeof(line), trace) && line[0] == '#')
		;
	TEST_ASSERT(strstr(line, expected), "Expected event \"%s\", got \"%s\"",
		    expected, line);
}

/* There's one event per conversion that makes it past the arguments. */
TEST_F(gmem, tracepoint)
{
	struct kvm_memory_attributes2 attr = good_arg(0, 0, 0);
	char line[512];
	struct pin pin;
	FILE *trace;

	if (access("/sys/kernel/tracing/events/kvm", F_OK))
		SKIP(return, "There are no tracepoints");

	rmdir(TRACE_INSTANCE);
	TEST_ASSERT(!mkdir(TRACE_INSTANCE, 0700), "mkdir() failed");
	write_file(TRACE_EVENT, "1");

	convert(self, 3, 2, ATTR_PRIVATE);
	convert(self, 3, 2, ATTR_PRIVATE);
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	convert(self, 0, NR_PAGES, ATTR_SHARED);

	pin_page(&pin, page_hva(self, 7));
	TEST_ASSERT_EQ(try_convert(self->fd, 6 * page_size, 4 * page_size,
				   ATTR_PRIVATE), EAGAIN);
	unpin_page(&pin);
	__expect_error(self->fd, &attr, EINVAL, "size");

	write_file(TRACE_EVENT, "0");
	trace = fopen(TRACE_INSTANCE "/trace", "r");
	TEST_ASSERT(trace, "Failed to open the trace");
	expect_event(trace, self, 3, 2, ATTR_SHARED, ATTR_PRIVATE, 0, 3);
	expect_event(trace, self, 3, 2, ATTR_PRIVATE, ATTR_PRIVATE, 0, 3);
	expect_event(trace, self, 0, NR_PAGES, ATTR_SHARED, ATTR_PRIVATE, 0, 0);
	expect_event(trace, self, 0, NR_PAGES, ATTR_PRIVATE, ATTR_SHARED, 0, 0);
	expect_event(trace, self, 6, 4, ATTR_SHARED, ATTR_PRIVATE, -EAGAIN, 7);
	TEST_ASSERT(!fgets(line, sizeof(line), trace), "Extra event: %s", line);
	fclose(trace);
	TEST_ASSERT(!rmdir(TRACE_INSTANCE), "rmdir() failed");
}

/*
 * Promise 1: running out of memory, at every single place where that's
 * possible.
 */
TEST_F(gmem, enomem)
{
	const struct {
		u64 first;
		u64 nr;
		u64 attributes;
	} conversions[] = {
		{ 0, 1, ATTR_PRIVATE },
		{ 0, NR_PAGES, ATTR_PRIVATE },
		{ 0, NR_PAGES, ATTR_SHARED },
		{ 5, 6, ATTR_SHARED },
		{ 9, 1, ATTR_PRIVATE },
	};
	u64 i, j, error_offset;
	int fd, nr_enomem = 0;

	fd = fail_nth_open();
	if (fd < 0)
		SKIP(return, FAIL_NTH_NEEDS);

	make_mixed(self);

	for (i = 0; i < ARRAY_SIZE(conversions); i++) {
		const u64 first = conversions[i].first;
		const u64 nr = conversions[i].nr;
		int nth, r;

		for (nth = 1; nth < FAIL_NTH_MAX; nth++) {
			struct kvm_memory_attributes2 attr =
				good_arg(first, nr, conversions[i].attributes);
			bool injected;
			int err;

			fail_nth_start(fd, nth);
			r = ioctl(self->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr);
			err = r ? errno : 0;
			error_offset = attr.error_offset;
			injected = fail_nth_stop(fd);

			/*
			 * EFAULT is for copying the argument, in or out, and EIO for a
			 * page that hardware, as it were, doesn't give back.
			 */
			TEST_ASSERT(!err || err == ENOMEM || err == EFAULT || err == EIO,
				    "fail-nth = %d, errno = %d", nth, err);
			if (err == ENOMEM) {
				nr_enomem++;
				TEST_ASSERT_EQ(error_offset, first * page_size);
			} else {
				TEST_ASSERT_EQ(error_offset, ERROR_OFFSET_CANARY);
			}
			if (err) {
				check_all(self);
				continue;
			}

			for (j = first; j < first + nr; j++)
				self->pages[j].private = conversions[i].attributes;
			check_all(self);

			/* Done once no fault was left to be injected. */
			if (!injected)
				break;

			/* Start over if KVM coped with failure. */
			convert(self, 0, NR_PAGES, ATTR_SHARED);
			make_mixed(self);
		}
		TEST_ASSERT(nth < FAIL_NTH_MAX, "There's no end of failures");

		convert(self, 0, NR_PAGES, ATTR_SHARED);
		make_mixed(self);
	}
	TEST_ASSERT(nr_enomem, "No conversion ever failed");
	kvm_close(fd);
}

/*
 * Promise 17: the host faults in shared pages while they're being converted,
 * and never makes a conversion fail.  A few hundred conversions are enough for the
 * host to run into each of the states so many times.
 */
#define NR_CONVERSIONS		500
#define MAX_NR_CONVERSIONS	(20 * NR_CONVERSIONS)
#define NR_TOUCHES		100

struct toucher {
	u8 *mem;
	bool stop;
	u64 nr_ok;
	u64 nr_sigbus;
};

static __thread sigjmp_buf toucher_jmpbuf;

static void toucher_sigbus_handler(int signum)
{
	siglongjmp(toucher_jmpbuf, 1);
}

static void *touch_memory(void *data)
{
	struct toucher *toucher = data;
	u64 page;

	while (!READ_ONCE(toucher->stop)) {
		if (sigsetjmp(toucher_jmpbuf, 1)) {
			toucher->nr_sigbus++;
			continue;
		}

		page = (toucher->nr_ok + toucher->nr_sigbus) % NR_PAGES;
		READ_ONCE(toucher->mem[page * page_size]);
		toucher->nr_ok++;
	}
	return NULL;
}

TEST_F(gmem, host_faults_are_waited_for)
{
	struct sigaction sa_old, sa_new = {
		.sa_handler = toucher_sigbus_handler,
	};
	struct toucher toucher = { .mem = self->mem };
	pthread_t thread;
	int i;

	host_fill(self, 0, NR_PAGES, 0x55);

	sigaction(SIGBUS, &sa_new, &sa_old);
	kvm_pthread_create(&thread, NULL, touch_memory, &toucher);

	/* Go on until the thread had its share of both. */
	for (i = 0; i < NR_CONVERSIONS || READ_ONCE(toucher.nr_ok) < NR_TOUCHES ||
	     READ_ONCE(toucher.nr_sigbus) < NR_TOUCHES; i++) {
		TEST_ASSERT(i < MAX_NR_CONVERSIONS,
			    "In %d conversions, the host saw shared memory %lu times, and private memory %lu times",
			    i, READ_ONCE(toucher.nr_ok), READ_ONCE(toucher.nr_sigbus));

		convert(self, i % 3, NR_PAGES - 4, ATTR_PRIVATE);
		if (!(i % 16))
			sched_yield();
		convert(self, i % 3, NR_PAGES - 4, ATTR_SHARED);
		if (!(i % 16))
			sched_yield();
	}

	WRITE_ONCE(toucher.stop, true);
	kvm_pthread_join(thread, NULL);
	sigaction(SIGBUS, &sa_old, NULL);

	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
}

/*
 * The cost of a conversion is up to what's there, not to how much could be.  If
 * it weren't, this would take forever.
 */
TEST(huge_and_sparse)
{
	const u64 size = 1ull << 40;
	struct kvm_vm *vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	u64 pages[] = { 0, 1, 0x12345, 0, 0, 0 };
	u64 error_offset, last;
	struct pin pin;
	int fd, i, j;
	u8 *mem;

	last = size / page_size - 1;
	pages[3] = last / 2;
	pages[4] = last - 1;
	pages[5] = last;

	vm_enable_gmem_attributes(vm);
	fd = vm_create_guest_memfd(vm, size, MMAP_PRIVATE);
	mem = mmap_gmem(fd, size);

	gmem_set_shared(fd, 0, size);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		assert_shared(mem + pages[i] * page_size, 0, 0);
		fill_page((u64 *)(mem + pages[i] * page_size), 0x91, pages[i], page_size);
	}

	for (j = 0; j < 100; j++) {
		gmem_set_private(fd, 0, size);
		for (i = 0; i < ARRAY_SIZE(pages); i++)
			assert_private(mem + pages[i] * page_size);

		gmem_set_shared(fd, page_size, size - 2 * page_size);
		assert_private(mem);
		assert_private(mem + last * page_size);
		for (i = 1; i < ARRAY_SIZE(pages) - 1; i++)
			assert_shared(mem + pages[i] * page_size, 0x91, pages[i]);

		gmem_set_shared(fd, 0, size);
		assert_shared(mem, 0x91, 0);
		assert_shared(mem + last * page_size, 0x91, last);
	}

	pin_page(&pin, mem + last * page_size);
	TEST_ASSERT_EQ(__try_convert(fd, 0, size, ATTR_PRIVATE, &error_offset), EAGAIN);
	TEST_ASSERT_EQ(error_offset, last * page_size);
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		assert_shared(mem + pages[i] * page_size, 0x91, pages[i]);
	unpin_page(&pin);

	/* Halves of halves, from either end. */
	for (i = 1; size >> (i + 1) >= 2 * page_size; i++) {
		gmem_set_private(fd, 0, size >> i);
		gmem_set_shared(fd, 0, size >> (i + 1));
	}
	assert_shared(mem, 0x91, 0);
	assert_shared(mem + page_size, 0x91, 1);
	assert_shared(mem + last * page_size, 0x91, last);

	kvm_munmap(mem, size);
	kvm_close(fd);

	/* As large as it gets. */
	fd = vm_create_guest_memfd(vm, INT64_MAX & ~(page_size - 1), MMAP_SHARED);
	gmem_set_private(fd, 0, INT64_MAX & ~(page_size - 1));
	gmem_set_shared(fd, page_size, page_size);
	gmem_set_shared(fd, (INT64_MAX & ~(page_size - 1)) - page_size, page_size);
	kvm_close(fd);

	kvm_vm_free(vm);
}

/* Pages with the same lower 32 bits of their indices have nothing in common. */
TEST(huge_index)
{
	const u64 half = page_size << 32, size = 2 * half;
	const u64 offsets[] = { 0, page_size, half - page_size, half,
				half + page_size, size - page_size };
	/* Of offsets[], what to bind: across the boundary, at it, and the very last. */
	const struct {
		int first;
		int nr;
	} slots[] = {
		{ 2, 3 }, { 3, 2 }, { 5, 1 },
	};
	u8 *mem[ARRAY_SIZE(offsets)], tags[ARRAY_SIZE(offsets)];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu);
	u64 error_offset;
	struct pin pin;
	int fd, i, j;

	fd = vm_create_guest_memfd(vm, size, MMAP_SHARED);
	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		mem[i] = __kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				    fd, offsets[i]);
		fill_page((u64 *)mem[i], 0x92, i, page_size);
	}

	for (j = 0; j < ARRAY_SIZE(offsets); j++) {
		gmem_set_private(fd, offsets[j], page_size);
		for (i = 0; i < ARRAY_SIZE(offsets); i++) {
			if (i == j)
				assert_private(mem[i]);
			else
				assert_shared(mem[i], 0x92, i);
		}
		gmem_set_shared(fd, offsets[j], page_size);
		assert_shared(mem[j], 0x92, j);

		pin_page(&pin, mem[j]);
		TEST_ASSERT_EQ(__try_convert(fd, 0, size, ATTR_PRIVATE,
					     &error_offset), EAGAIN);
		TEST_ASSERT_EQ(error_offset, offsets[j]);
		unpin_page(&pin);
	}

	/* The guest sees these pages, and no others, in either state. */
	memset(tags, 0x92, sizeof(tags));
	for (j = 0; j < ARRAY_SIZE(slots); j++) {
		const int first = slots[j].first, nr = slots[j].nr;
		const u64 offset = offsets[first], slot_size = nr * page_size;

		vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA,
					   slot_size, NULL, fd, offset);
		for (i = first; i < first + nr; i++)
			guest_do(vcpu, GUEST_CHECK, page_gpa(i - first), i, 1, tags[i]);

		gmem_set_private(fd, offset, slot_size);
		for (i = 0; i < ARRAY_SIZE(offsets); i++) {
			if (i >= first && i < first + nr)
				assert_private(mem[i]);
			else
				assert_shared(mem[i], tags[i], i);
		}
		for (i = first; i < first + nr; i++) {
			guest_do(vcpu, GUEST_CHECK, page_gpa(i - first), i, 1, tags[i]);
			tags[i] = 0x93 + j;
			guest_do(vcpu, GUEST_FILL, page_gpa(i - first), i, 1, tags[i]);
		}

		gmem_set_shared(fd, offset, slot_size);
		guest_do(vcpu, GUEST_CHECK, TEST_GPA, first, nr, 0x93 + j);
		for (i = 0; i < ARRAY_SIZE(offsets); i++)
			assert_shared(mem[i], tags[i], i);

		vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA,
					   0, NULL, -1, 0);
	}

	/* Across the boundary. */
	gmem_set_private(fd, half - page_size, 2 * page_size);
	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		if (offsets[i] == half - page_size || offsets[i] == half)
			assert_private(mem[i]);
		else
			assert_shared(mem[i], tags[i], i);
	}

	kvm_close(fd);
	kvm_vm_free(vm);
}

/*
 * Promise 16: the guest decides what's converted, and can make the record of
 * what's private as large, and as scattered, as it wants to.
 *
 * Pages that are so far apart don't share an entry of the record, i.e. each that's
 * converted takes two slots, for itself and for what's in between: 4096 are too many
 * for a tree of three levels with 16 slots per node.
 */
#define SCATTERED_STRIDE	64

FIXTURE(scattered) {
	struct kvm_vm *vm;
	int fd;
	u64 size;
	u8 *mem;
	u8 *private;
};

FIXTURE_VARIANT(scattered) {
	u32 nr;
	u64 flags;
	bool shuffle;
};

FIXTURE_VARIANT_ADD(scattered, 4096_to_private) {
	.nr = 4096,
	.flags = MMAP_SHARED,
};

FIXTURE_VARIANT_ADD(scattered, 4096_to_shared) {
	.nr = 4096,
	.flags = MMAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(scattered, 4096_to_private_shuffled) {
	.nr = 4096,
	.flags = MMAP_SHARED,
	.shuffle = true,
};

FIXTURE_VARIANT_ADD(scattered, 30000_to_shared_shuffled) {
	.nr = 30000,
	.flags = MMAP_PRIVATE,
	.shuffle = true,
};

#define scattered_data FIXTURE_DATA(scattered)
#define scattered_variant FIXTURE_VARIANT(scattered)

FIXTURE_SETUP(scattered)
{
	self->vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	vm_enable_gmem_attributes(self->vm);

	/* Start, and end, with pages that aren't converted. */
	self->size = (SCATTERED_STRIDE * (variant->nr - 1ull) + 3) * page_size;
	self->private = malloc(self->size / page_size);
	TEST_ASSERT(self->private, "malloc() failed");

	self->fd = -1;
}

FIXTURE_TEARDOWN(scattered)
{
	free(self->private);
	kvm_vm_free(self->vm);
}

static u64 nth_scattered_page(u64 i)
{
	return SCATTERED_STRIDE * i + 1;
}

static void scatter(scattered_data *self, const scattered_variant *variant,
		    struct kvm_random_state *rng)
{
	const bool private = variant->flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	u32 i, *order;

	self->fd = vm_create_guest_memfd(self->vm, self->size, variant->flags);
	self->mem = mmap_gmem(self->fd, self->size);
	memset(self->private, !private, self->size / page_size);

	order = malloc(variant->nr * sizeof(*order));
	TEST_ASSERT(order, "malloc() failed");
	for (i = 0; i < variant->nr; i++)
		order[i] = i;
	for (i = variant->nr - 1; variant->shuffle && i; i--) {
		u32 j = kvm_random_u32_in_range(rng, 0, i);
		u32 tmp = order[i];

		order[i] = order[j];
		order[j] = tmp;
	}

	for (i = 0; i < variant->nr; i++) {
		u64 page = nth_scattered_page(order[i]);

		gmem_set_memory_attributes(self->fd, page * page_size, page_size,
					   private ? ATTR_PRIVATE : ATTR_SHARED);
		self->private[page] = private;
	}
	free(order);
}

/* Each look at a page that's shared allocates it, look at a few only, and count. */
static void check_scattered(scattered_data *self, const scattered_variant *variant,
			    struct kvm_random_state *rng)
{
	u64 page, nr_pages = self->size / page_size, nr_private = 0, nr_ranges = 0;
	struct gmem_info info;
	int i;

	for (page = 0; page < nr_pages; page++) {
		nr_private += self->private[page];
		nr_ranges += !page || self->private[page] != self->private[page - 1];
	}
	gmem_read_info(self->fd, &info);
	TEST_ASSERT_EQ(info.private, nr_private);
	TEST_ASSERT_EQ(info.ranges, nr_ranges);

	for (i = 0; i < 400; i++) {
		switch (i) {
		case 0 ... 9:
			page = i;
			break;
		case 10 ... 19:
			page = nr_pages - 1 - (i - 10);
			break;
		case 20 ... 319:
			/* What was converted, or the page on either side of it. */
			page = kvm_random_u32_in_range(rng, 0, variant->nr - 1);
			page = nth_scattered_page(page) + i % 3 - 1;
			break;
		default:
			page = kvm_random_u32_in_range(rng, 0, nr_pages - 1);
			break;
		}

		TEST_ASSERT(host_can_read(self->mem + page * page_size) ==
			    !self->private[page],
			    "Page %lu should be %s", page,
			    self->private[page] ? "private" : "shared");
	}
}

/* Tear down the record as it is. */
static void close_scattered(scattered_data *self)
{
	kvm_munmap(self->mem, self->size);
	kvm_close(self->fd);
}

static void convert_all_scattered(scattered_data *self, u64 attributes)
{
	gmem_set_memory_attributes(self->fd, 0, self->size, attributes);
	memset(self->private, !!attributes, self->size / page_size);
}

TEST_F_TIMEOUT(scattered, close, 600)
{
	struct kvm_random_state rng = new_rng();

	scatter(self, variant, &rng);
	check_scattered(self, variant, &rng);
	close_scattered(self);
}

/* One call that converts all, at first it fails (promise 1), then it doesn't. */
TEST_F_TIMEOUT(scattered, convert_all, 600)
{
	struct kvm_random_state rng = new_rng();
	const u64 last = self->size / page_size - 2;
	u64 error_offset;
	struct pin pin;

	scatter(self, variant, &rng);

	gmem_set_shared(self->fd, last * page_size, page_size);
	self->private[last] = false;
	pin_page(&pin, self->mem + last * page_size);
	TEST_ASSERT_EQ(__try_convert(self->fd, 0, self->size, ATTR_PRIVATE,
				     &error_offset), EAGAIN);
	TEST_ASSERT_EQ(error_offset, last * page_size);
	check_scattered(self, variant, &rng);
	unpin_page(&pin);

	/* To what's already the state of most pages, or to the opposite. */
	convert_all_scattered(self, variant->shuffle ? ATTR_PRIVATE : ATTR_SHARED);
	check_scattered(self, variant, &rng);
	convert_all_scattered(self, variant->shuffle ? ATTR_SHARED : ATTR_PRIVATE);
	check_scattered(self, variant, &rng);
	close_scattered(self);
}

/* Undo what was done, one by one, i.e. merge what's next to each other again. */
TEST_F_TIMEOUT(scattered, convert_back, 600)
{
	const bool private = variant->flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_random_state rng = new_rng();
	u64 i, page;

	scatter(self, variant, &rng);

	for (i = 0; i < variant->nr; i++) {
		page = nth_scattered_page(i);
		gmem_set_memory_attributes(self->fd, page * page_size, page_size,
					   private ? ATTR_SHARED : ATTR_PRIVATE);
		self->private[page] = !private;
	}
	check_scattered(self, variant, &rng);
	close_scattered(self);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	gmem_test_init(&argc, argv);

	return test_harness_run(argc, argv);
}
