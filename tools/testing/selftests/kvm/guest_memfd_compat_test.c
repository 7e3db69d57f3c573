// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_MEMORY_ATTRIBUTES2 without the help of a library: what a 32-bit VMM
 * sees when it makes the calls by itself.  Unlike other KVM selftests, this one
 * compiles for 32-bit user space, too, e.g. with -m32.
 *
 * "-s seed" repeats what a test did at random, and "-n calls" says how many calls it
 * makes in each of its parts, instead of 100,000.
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
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
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

static uint64_t seed;

/* Calls with random arguments: so many with random bytes, and so many better ones. */
static uint64_t nr_calls = 50000;

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

/*
 * Random arguments, and what is to be expected of them.  The file is too large for
 * a model of all of it, a few pages have to do.
 */
#define NR_SAMPLES	16
#define NR_PINNED	2
#define NR_REFUSED	200

struct sample {
	uint64_t offset;
	uint8_t *mem;
	bool private;
};

struct fuzz {
	int fd;
	uint64_t page_size, rng;
	struct sample samples[NR_SAMPLES];
	/* The samples that make up the pinned pages, in order of their offsets. */
	int pinned[NR_PINNED];
	int pipe[2];
	/* What any call fails with, if there's something wrong with the caller. */
	int error;
	/* A page to put arguments in, followed by one that isn't accessible. */
	uint8_t *args;
	uint64_t nr_ok, nr_again;
};

static uint64_t rnd(struct fuzz *fuzz)
{
	fuzz->rng ^= fuzz->rng << 13;
	fuzz->rng ^= fuzz->rng >> 7;
	fuzz->rng ^= fuzz->rng << 17;
	return fuzz->rng;
}

/* Is true once in @nr times. */
static bool once_in(struct fuzz *fuzz, int nr)
{
	return !(rnd(fuzz) % nr);
}

static uint64_t random_bit(struct fuzz *fuzz)
{
	return 1ull << rnd(fuzz) % 64;
}

static void fuzz_init(struct fuzz *fuzz, int fd)
{
	const uint64_t page_size = sysconf(_SC_PAGESIZE);
	const uint64_t places[] = { 0, 1ull << 32, FAR, SIZE - 4 * page_size };
	struct sample *sample = fuzz->samples;
	int i;

	memset(fuzz, 0, sizeof(*fuzz));
	fuzz->fd = fd;
	fuzz->page_size = page_size;
	fuzz->rng = seed;

	for (i = 0; i < NR_SAMPLES; i++, sample++) {
		sample->offset = places[i % 4] + i / 4 * fuzz->page_size;
		sample->mem = mmap(NULL, fuzz->page_size, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, sample->offset);
		if (sample->mem == MAP_FAILED)
			abort();
		*sample->mem = i + 1;
	}

	fuzz->args = mmap(NULL, 2 * fuzz->page_size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fuzz->args == MAP_FAILED ||
	    mprotect(fuzz->args + fuzz->page_size, fuzz->page_size, PROT_NONE))
		abort();
}

static void fuzz_free(struct fuzz *fuzz)
{
	int i;

	for (i = 0; i < NR_SAMPLES; i++)
		munmap(fuzz->samples[i].mem, fuzz->page_size);
	munmap(fuzz->args, 2 * fuzz->page_size);
}

static void random_bytes(struct fuzz *fuzz, struct kvm_memory_attributes2 *attr)
{
	uint64_t *words = (uint64_t *)attr;
	size_t i;

	for (i = 0; i < sizeof(*attr) / sizeof(*words); i++)
		words[i] = rnd(fuzz);
}

/* What's close to where things change. */
static uint64_t random_offset(struct fuzz *fuzz)
{
	uint64_t offset = fuzz->samples[rnd(fuzz) % NR_SAMPLES].offset;

	switch (rnd(fuzz) % 16) {
	case 0:
		return offset ^ random_bit(fuzz);
	case 1:
		return -offset;
	case 2:
		return offset + rnd(fuzz) % fuzz->page_size;
	case 3:
		return SIZE;
	case 4:
		return SIZE + fuzz->page_size;
	case 5:
		return rnd(fuzz);
	default:
		return offset;
	}
}

/* Arguments that are right, or almost. */
static void almost_right(struct fuzz *fuzz, struct kvm_memory_attributes2 *attr)
{
	memset(attr, 0, sizeof(*attr));
	attr->offset = random_offset(fuzz);
	attr->size = random_offset(fuzz) - attr->offset;
	if (once_in(fuzz, 4))
		attr->size = fuzz->page_size;
	attr->attributes = once_in(fuzz, 2) ? PRIVATE : 0;
	if (once_in(fuzz, 16))
		attr->attributes ^= random_bit(fuzz);
	if (once_in(fuzz, 16))
		attr->flags ^= random_bit(fuzz);
	if (once_in(fuzz, 16))
		attr->reserved[rnd(fuzz) % ARRAY_SIZE(attr->reserved)] ^= random_bit(fuzz);
	attr->error_offset = rnd(fuzz);
}

/* What the call has to return, as documented, and where it has to fail. */
static int reference(struct fuzz *fuzz, const struct kvm_memory_attributes2 *attr,
		     __u64 *error_offset)
{
	uint64_t offset;
	size_t i;

	if (attr->flags)
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(attr->reserved); i++) {
		if (attr->reserved[i])
			return -EINVAL;
	}
	if (attr->attributes != PRIVATE && attr->attributes)
		return -EINVAL;
	if (!attr->size || attr->size > SIZE || attr->offset > SIZE - attr->size)
		return -EINVAL;
	if (attr->offset % fuzz->page_size || attr->size % fuzz->page_size)
		return -EINVAL;

	for (i = 0; i < NR_PINNED && attr->attributes && fuzz->pipe[1]; i++) {
		offset = fuzz->samples[fuzz->pinned[i]].offset;
		if (offset - attr->offset < attr->size) {
			*error_offset = offset;
			return -EAGAIN;
		}
	}
	return 0;
}

static void update(struct fuzz *fuzz, const struct kvm_memory_attributes2 *attr)
{
	struct sample *sample;

	for (sample = fuzz->samples; sample < fuzz->samples + NR_SAMPLES; sample++) {
		if (sample->offset - attr->offset < attr->size)
			sample->private = attr->attributes;
	}
}

static bool check_sample(struct fuzz *fuzz, int nr)
{
	struct sample *sample = &fuzz->samples[nr];
	int val = peek(sample->mem), expected = sample->private ? -1 : nr + 1;

	if (val == expected)
		return true;

	ksft_print_msg("expected %d at 0x%llx, got %d\n", expected,
		       (unsigned long long)sample->offset, val);
	return false;
}

static bool check_samples(struct fuzz *fuzz)
{
	int i;

	for (i = 0; i < NR_SAMPLES; i++) {
		if (!check_sample(fuzz, i))
			return false;
	}
	return true;
}

/* Returns false if anything is wrong. */
static bool call(struct fuzz *fuzz, const struct kvm_memory_attributes2 *attr)
{
	struct kvm_memory_attributes2 want = *attr, got = *attr;
	size_t len = sizeof(got);
	uint8_t *arg;
	int r, err;

	/* Anywhere on the page, or with the end out of reach. */
	arg = fuzz->args + rnd(fuzz) % (fuzz->page_size - len);
	if (once_in(fuzz, 16)) {
		len = rnd(fuzz) % len;
		arg = fuzz->args + fuzz->page_size - len;
	}

	if (fuzz->error)
		err = fuzz->error;
	else if (len < sizeof(got))
		err = EFAULT;
	else
		err = -reference(fuzz, attr, &want.error_offset);

	memcpy(arg, &got, len);
	r = set(fuzz->fd, (void *)arg);
	memcpy(&got, arg, len);

	if (r != err || memcmp(&got, &want, sizeof(got))) {
		ksft_print_msg("expected errno %d and error_offset 0x%llx, got %d and 0x%llx\n",
			       err, (unsigned long long)want.error_offset, r,
			       (unsigned long long)got.error_offset);
		ksft_print_msg("offset 0x%llx size 0x%llx attributes 0x%llx flags 0x%llx\n",
			       (unsigned long long)attr->offset,
			       (unsigned long long)attr->size,
			       (unsigned long long)attr->attributes,
			       (unsigned long long)attr->flags);
		return false;
	}

	fuzz->nr_again += err == EAGAIN;
	if (err)
		return true;

	fuzz->nr_ok++;
	update(fuzz, attr);
	return check_sample(fuzz, rnd(fuzz) % NR_SAMPLES);
}

static bool many_calls(struct fuzz *fuzz, uint64_t nr)
{
	struct kvm_memory_attributes2 attr;
	uint64_t i;

	for (i = 0; i < nr; i++) {
		random_bytes(fuzz, &attr);
		if (!call(fuzz, &attr))
			return false;

		almost_right(fuzz, &attr);
		if (!call(fuzz, &attr))
			return false;

		if (!(i % 4096) && !check_samples(fuzz))
			return false;
	}
	return check_samples(fuzz);
}

static bool many_calls_in_child(struct fuzz *fuzz)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(!many_calls(fuzz, nr_calls));

	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

/*
 * Whatever the argument is, the call does what is documented, and nothing else:
 * neither to the memory, nor to the argument.
 */
TEST_F_TIMEOUT(abi, fuzz, 600)
{
	struct fuzz fuzz;
	struct iovec iov = { .iov_len = 1 };
	int i;

	fuzz_init(&fuzz, self->fd);
	ASSERT_TRUE(many_calls(&fuzz, nr_calls));
	ASSERT_LT(nr_calls / 100, fuzz.nr_ok);
	ASSERT_EQ(0, fuzz.nr_again);

	/* Not so in other processes, no matter what. */
	fuzz.error = EIO;
	ASSERT_TRUE(many_calls_in_child(&fuzz));
	ASSERT_TRUE(check_samples(&fuzz));
	fuzz.error = 0;

	/* With pages that can't become private, which KVM takes its time to find. */
	ASSERT_EQ(0, pipe(fuzz.pipe));
	fuzz.pinned[0] = 4;
	fuzz.pinned[1] = 2;
	for (i = 0; i < NR_PINNED; i++) {
		struct sample *sample = &fuzz.samples[fuzz.pinned[i]];
		struct kvm_memory_attributes2 attr = {
			.offset = sample->offset,
			.size = fuzz.page_size,
		};

		ASSERT_EQ(0, set(self->fd, &attr));
		update(&fuzz, &attr);
		iov.iov_base = sample->mem;
		ASSERT_EQ(1, vmsplice(fuzz.pipe[1], &iov, 1, 0));
	}
	ASSERT_TRUE(many_calls(&fuzz, NR_REFUSED));
	ASSERT_LT(0, fuzz.nr_again);

	close(fuzz.pipe[0]);
	close(fuzz.pipe[1]);
	fuzz_free(&fuzz);
}

/* The call doesn't exist for VMs that track attributes themselves. */
TEST_F_TIMEOUT(abi, fuzz_vm_scoped, 600)
{
	struct kvm_create_guest_memfd create = { .size = SIZE };
	struct fuzz fuzz;
	int vm_fd, fd;

	vm_fd = ioctl(self->kvm_fd, KVM_CREATE_VM, PRIVATE_VM_TYPE);
	ASSERT_LE(0, vm_fd);
	if (ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES)) {
		close(vm_fd);
		SKIP(return, "VMs track attributes in guest_memfd unless asked not to");
	}

	/* The memory that is looked at is another VM's. */
	fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &create);
	ASSERT_LE(0, fd);
	fuzz_init(&fuzz, self->fd);
	fuzz.fd = fd;
	fuzz.error = ENOTTY;
	ASSERT_TRUE(many_calls(&fuzz, nr_calls));
	ASSERT_TRUE(many_calls_in_child(&fuzz));

	fuzz_free(&fuzz);
	close(fd);
	close(vm_fd);
}

int main(int argc, char *argv[])
{
	seed = time(NULL);
	while (argc > 2 && (!strcmp(argv[1], "-s") || !strcmp(argv[1], "-n"))) {
		if (argv[1][1] == 's')
			seed = strtoull(argv[2], NULL, 0);
		else
			nr_calls = strtoull(argv[2], NULL, 0) / 2;
		argv[2] = argv[0];
		argv += 2;
		argc -= 2;
	}
	printf("Random seed: 0x%llx\n", (unsigned long long)seed);

	return test_harness_run(argc, argv);
}
