// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_MEMORY_ATTRIBUTES2 without the help of a library: what a 32-bit VMM
 * sees when it makes the calls by itself.  Unlike other KVM selftests, this one
 * compiles for 32-bit user space, too, e.g. with -m32.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kselftest_harness.h"

#ifdef KVM_X86_SW_PROTECTED_VM
#define PRIVATE_VM_TYPE		KVM_X86_SW_PROTECTED_VM
#elif defined(__aarch64__)
#define PRIVATE_VM_TYPE		KVM_VM_TYPE_ARM_SW_PROTECTED
#else
#error "Tell the test how to create VMs with private memory"
#endif

#define PRIVATE			KVM_MEMORY_ATTRIBUTE_PRIVATE
#define CANARY			0xdead0000beef0001ull

/* Offsets that don't fit into a pointer, or a long, of a 32-bit process. */
#define FAR			0x40000000000ull
#define SIZE			(FAR * 2)

static sigjmp_buf sigbus_jmpbuf;

static void sigbus_handler(int signum)
{
	siglongjmp(sigbus_jmpbuf, 1);
}

FIXTURE(abi) {
	int kvm_fd, vm_fd, fd;
	uint64_t page_size;
	uint8_t *near, *far;
};

FIXTURE_SETUP(abi)
{
	struct kvm_create_guest_memfd create = {
		.size = SIZE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
		.args = { PRIVATE },
	};

	self->page_size = sysconf(_SC_PAGESIZE);
	self->kvm_fd = open("/dev/kvm", O_RDWR);
	ASSERT_LE(0, self->kvm_fd);
	self->vm_fd = ioctl(self->kvm_fd, KVM_CREATE_VM, PRIVATE_VM_TYPE);
	ASSERT_LE(0, self->vm_fd);
	ASSERT_EQ(0, ioctl(self->vm_fd, KVM_ENABLE_CAP, &cap));
	ASSERT_EQ(PRIVATE, ioctl(self->vm_fd, KVM_CHECK_EXTENSION,
				 KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	self->fd = ioctl(self->vm_fd, KVM_CREATE_GUEST_MEMFD, &create);
	ASSERT_LE(0, self->fd);

	self->near = mmap(NULL, 4 * self->page_size, PROT_READ | PROT_WRITE,
			  MAP_SHARED, self->fd, 0);
	ASSERT_TRUE(self->near != MAP_FAILED);
	self->far = mmap(NULL, 4 * self->page_size, PROT_READ | PROT_WRITE,
			 MAP_SHARED, self->fd, FAR);
	ASSERT_TRUE(self->far != MAP_FAILED);

	ASSERT_TRUE(signal(SIGBUS, sigbus_handler) != SIG_ERR);
}

FIXTURE_TEARDOWN(abi)
{
	munmap(self->near, 4 * self->page_size);
	munmap(self->far, 4 * self->page_size);
	close(self->fd);
	close(self->vm_fd);
	close(self->kvm_fd);
}

/* What's in the byte, or -1 if it's private. */
static int peek(uint8_t *p)
{
	if (sigsetjmp(sigbus_jmpbuf, 1))
		return -1;

	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

/* Returns 0, or errno. */
static int set(int fd, struct kvm_memory_attributes2 *attr)
{
	return ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) ? errno : 0;
}

TEST_F(abi, layout)
{
	EXPECT_EQ(0xc080aed2ul, KVM_SET_MEMORY_ATTRIBUTES2);
	EXPECT_EQ(128, sizeof(struct kvm_memory_attributes2));
	EXPECT_EQ(0, offsetof(struct kvm_memory_attributes2, offset));
	EXPECT_EQ(0, offsetof(struct kvm_memory_attributes2, address));
	EXPECT_EQ(8, offsetof(struct kvm_memory_attributes2, size));
	EXPECT_EQ(16, offsetof(struct kvm_memory_attributes2, attributes));
	EXPECT_EQ(24, offsetof(struct kvm_memory_attributes2, flags));
	EXPECT_EQ(32, offsetof(struct kvm_memory_attributes2, error_offset));
	EXPECT_EQ(40, offsetof(struct kvm_memory_attributes2, reserved));
}

TEST_F(abi, convert)
{
	struct kvm_memory_attributes2 attr = {
		.offset = FAR + self->page_size,
		.size = self->page_size,
		.attributes = PRIVATE,
		.error_offset = CANARY,
	};
	int i;

	for (i = 0; i < 4; i++) {
		self->near[i * self->page_size] = 0x10 + i;
		self->far[i * self->page_size] = 0x20 + i;
	}

	/* None but the far page is affected, and its contents are kept. */
	ASSERT_EQ(0, set(self->fd, &attr));
	EXPECT_EQ(CANARY, attr.error_offset);
	for (i = 0; i < 4; i++) {
		EXPECT_EQ(0x10 + i, peek(&self->near[i * self->page_size]));
		EXPECT_EQ(i == 1 ? -1 : 0x20 + i,
			  peek(&self->far[i * self->page_size]));
	}

	attr.attributes = 0;
	ASSERT_EQ(0, set(self->fd, &attr));
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0x20 + i, peek(&self->far[i * self->page_size]));
}

TEST_F(abi, error_offset)
{
	struct kvm_memory_attributes2 attr = {
		.offset = FAR,
		.size = FAR,
		.attributes = PRIVATE,
		.error_offset = CANARY,
	};
	struct iovec iov = {
		.iov_base = self->far + 2 * self->page_size,
		.iov_len = 1,
	};
	char byte;
	int fds[2];

	self->far[2 * self->page_size] = 0x22;
	ASSERT_EQ(0, pipe(fds));
	ASSERT_EQ(1, vmsplice(fds[1], &iov, 1, 0));

	ASSERT_EQ(EAGAIN, set(self->fd, &attr));
	EXPECT_EQ(FAR + 2 * self->page_size, attr.error_offset);
	EXPECT_EQ(0x22, peek(&self->far[2 * self->page_size]));

	ASSERT_EQ(1, read(fds[0], &byte, 1));
	EXPECT_EQ(0x22, byte);
	close(fds[0]);
	close(fds[1]);

	attr.error_offset = CANARY;
	ASSERT_EQ(0, set(self->fd, &attr));
	EXPECT_EQ(CANARY, attr.error_offset);
	EXPECT_EQ(-1, peek(&self->far[2 * self->page_size]));
}

/* Each wrong argument by itself is noticed, and has no effect. */
TEST_F(abi, errors)
{
	const struct kvm_memory_attributes2 good = {
		.size = self->page_size,
		.attributes = PRIVATE,
		.error_offset = CANARY,
	};
	struct kvm_memory_attributes2 bad[] = {
		good, good, good, good, good, good, good, good, good, good, good,
	};
	unsigned int i;

	/* Above bit 31, too: nothing gets lost on the way. */
	bad[0].flags = 1;
	bad[1].flags = 1ull << 63;
	bad[2].reserved[0] = 1ull << 32;
	bad[3].reserved[10] = 1;
	bad[4].attributes |= 1ull << 32;
	bad[5].attributes = 1;
	bad[6].size = 0;
	bad[7].offset = -self->page_size;
	bad[8].size += 1;
	bad[9].offset = SIZE;
	bad[10].size = SIZE + self->page_size;

	self->near[0] = 0x42;
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, set(self->fd, &bad[i])) {
			TH_LOG("argument %u", i);
		}
		EXPECT_EQ(CANARY, bad[i].error_offset);
		EXPECT_EQ(0x42, peek(self->near));
	}

	EXPECT_EQ(EFAULT, set(self->fd, NULL));
	EXPECT_EQ(EFAULT, set(self->fd, (void *)-4096l));
	EXPECT_NE(0, set(self->vm_fd, &bad[0]));
	EXPECT_NE(0, set(self->kvm_fd, &bad[0]));
	EXPECT_EQ(0x42, peek(self->near));
}

TEST_HARNESS_MAIN
