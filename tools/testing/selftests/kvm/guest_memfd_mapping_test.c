// SPDX-License-Identifier: GPL-2.0-only
/*
 * What else userspace can do to a mapping of guest_memfd memory: before it is
 * converted, while it is converted, and while some of it is private.  Contents,
 * signals and errors are right, and nothing hangs.
 *
 * What a system call says about shared memory is what it says about memory of a
 * VM that has no private memory, of which no page is ever converted.
 *
 * And what mm does of its own accord, or because somebody asks it to get rid of
 * pages: those of guest_memfd stay, also if nobody but a guest has them mapped.
 */
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#define NR_PAGES	16
#define PRIVATE_PAGE	5

#include "guest_memfd_fixture.h"

/* Machines may be slow, and busy: it's for what hangs. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

/* How many conversions, and how many of each operation, race. */
#define NR_ROUNDS	200

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

struct op {
	const char *name;
	/* Leaves the memory accessible, returns 0 or errno. */
	int (*fn)(u8 *mem, size_t size, int arg);
	int arg;
	/* What it says if a page is private, if it isn't the same. */
	int private_errno;
	/* It's for the whole host, or takes memory from it if KVM is wrong. */
	bool host_wide;
};

/* Option -g: do what's host-wide, too. */
static bool do_host_wide;

static int op_madvise(u8 *mem, size_t size, int advice)
{
	return madvise(mem, size, advice) ? errno : 0;
}

static int op_guard(u8 *mem, size_t size, int arg)
{
	return madvise(mem, size, MADV_GUARD_INSTALL) ||
	       madvise(mem, size, MADV_GUARD_REMOVE) ? errno : 0;
}

static int op_mprotect(u8 *mem, size_t size, int prot)
{
	return mprotect(mem, size, prot) ||
	       mprotect(mem, size, PROT_READ | PROT_WRITE) ? errno : 0;
}

static int op_mlock(u8 *mem, size_t size, int flags)
{
	int r = syscall(__NR_mlock2, mem, size, flags) ? errno : 0;

	return munlock(mem, size) ? errno : r;
}

/* There, and back again. */
static int op_mremap(u8 *mem, size_t size, int flags)
{
	u8 *there = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mremap(mem, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | flags, there) != there)
		return errno;
	if (mremap(there, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, mem) != mem)
		return errno;
	return 0;
}

static int op_soft_dirty(u8 *mem, size_t size, int arg)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY);
	int r;

	if (fd < 0)
		return errno;
	r = write(fd, "4", 1) == 1 ? 0 : errno;
	close(fd);
	return r;
}

/* A child that has the memory, or not, and that has gone. */
static int op_fork(u8 *mem, size_t size, int advice)
{
	int r = advice && madvise(mem, size, advice) ? errno : 0;
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		/* May be SIGBUS, if it's private, and SIGSEGV, if it isn't there. */
		signal(SIGBUS, SIG_DFL);
		signal(SIGSEGV, SIG_DFL);
		READ_ONCE(*(u64 *)mem);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed");
	if (advice == MADV_DONTFORK)
		madvise(mem, size, MADV_DOFORK);
	return r;
}

/* Write-protect asynchronously, scan, and leave it at that. */
static int op_pagemap_scan(u8 *mem, size_t size, int arg)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct page_region regions[NR_PAGES];
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)mem,
		.end = (uintptr_t)mem + size,
		.vec = (uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int uffd, fd, r;

	uffd = syscall(__NR_userfaultfd, UFFD_USER_MODE_ONLY | O_CLOEXEC);
	if (uffd < 0)
		return errno;
	fd = open("/proc/self/pagemap", O_RDONLY);
	r = ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg) ||
	    ioctl(fd, PAGEMAP_SCAN, &scan) < 0 ? errno : 0;

	/* This is what hung: a write that finds a marker. */
	if (!r && !arg)
		WRITE_ONCE(*(u64 *)mem, READ_ONCE(*(u64 *)mem));
	close(fd);
	close(uffd);
	return r;
}

static int op_write(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY), r;

	if (fd < 0)
		return errno;
	r = write(fd, what, strlen(what)) > 0 ? 0 : errno;
	close(fd);
	return r;
}

static int op_drop_caches(u8 *mem, size_t size, int arg)
{
	return op_write("/proc/sys/vm/drop_caches", "3");
}

static int op_compact(u8 *mem, size_t size, int arg)
{
	return op_write("/proc/sys/vm/compact_memory", "1");
}

static void ignore(int sig)
{
}

#define MEMORY		"/sys/devices/system/memory/"

/* Offline the memory that a page is in, for as long as it takes to refuse. */
static int offline_memory(u64 pfn)
{
	const struct itimerval expires = { .it_value.tv_usec = 200000 }, never = { };
	unsigned long bytes = 0;
	char path[64];
	FILE *f;
	int r;

	f = fopen(MEMORY "block_size_bytes", "r");
	if (!f)
		return errno;
	TEST_ASSERT(fscanf(f, "%lx", &bytes) == 1, "Failed to read block_size_bytes");
	fclose(f);

	snprintf(path, sizeof(path), MEMORY "memory%lu/state", pfn * page_size / bytes);
	sigaction(SIGPROF, &(struct sigaction) { .sa_handler = ignore }, NULL);
	setitimer(ITIMER_PROF, &expires, NULL);
	r = op_write(path, "offline");
	setitimer(ITIMER_PROF, &never, NULL);
	if (!r)
		TEST_ASSERT(!op_write(path, "online"), "%s is offline", path);
	return r;
}

/* What it says depends on what else is there. */
static int op_offline(u8 *mem, size_t size, int arg)
{
	offline_memory(host_pfn(mem));
	return 0;
}

static const struct op ops[] = {
	{ "mprotect(NONE)", op_mprotect, PROT_NONE },
	{ "mprotect(READ)", op_mprotect, PROT_READ },
	{ "mlock", op_mlock, 0, ENOMEM },
	{ "mlock(ONFAULT)", op_mlock, MLOCK_ONFAULT },
	{ "MADV_DONTNEED", op_madvise, MADV_DONTNEED },
	{ "MADV_COLD", op_madvise, MADV_COLD },
	{ "MADV_PAGEOUT", op_madvise, MADV_PAGEOUT },
	{ "MADV_FREE", op_madvise, MADV_FREE },
	{ "MADV_POPULATE_READ", op_madvise, MADV_POPULATE_READ, EFAULT },
	{ "MADV_POPULATE_WRITE", op_madvise, MADV_POPULATE_WRITE, EFAULT },
	{ "MADV_WILLNEED", op_madvise, MADV_WILLNEED },
	{ "MADV_COLLAPSE", op_madvise, MADV_COLLAPSE },
	{ "MADV_HUGEPAGE", op_madvise, MADV_HUGEPAGE },
	{ "MADV_MERGEABLE", op_madvise, MADV_MERGEABLE },
	{ "MADV_GUARD", op_guard },
	{ "mremap", op_mremap },
	{ "mremap(DONTUNMAP)", op_mremap, MREMAP_DONTUNMAP },
	{ "soft-dirty", op_soft_dirty },
	{ "fork", op_fork },
	{ "MADV_DONTFORK", op_fork, MADV_DONTFORK },
	{ "MADV_WIPEONFORK", op_fork, MADV_WIPEONFORK },
	{ "PAGEMAP_SCAN", op_pagemap_scan },
	{ "MADV_SOFT_OFFLINE", op_madvise, MADV_SOFT_OFFLINE, EFAULT, .host_wide = true },
	{ "drop_caches", op_drop_caches, .host_wide = true },
	{ "compact_memory", op_compact, .host_wide = true },
	{ "offline", op_offline, .host_wide = true },
};

static bool is_wanted(const struct op *op)
{
	return do_host_wide || !op->host_wide;
}

FIXTURE(mapping) {
	struct kvm_vm *vm;
	struct kvm_vm *ordinary_vm;
	int fd;
	int ordinary_fd;
	u8 *mem;
	u8 *control;
	size_t size;
};

FIXTURE_SETUP(mapping)
{
	self->size = NR_PAGES * page_size;
	self->vm = vm_create_barebones_type(PRIVATE_VM_TYPE);
	vm_enable_gmem_attributes(self->vm);
	self->fd = vm_create_guest_memfd(self->vm, self->size, MMAP_SHARED);
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);

	self->ordinary_vm = vm_create_barebones();
	self->ordinary_fd = vm_create_guest_memfd(self->ordinary_vm, self->size,
						  MMAP_SHARED);
	self->control = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED,
				 self->ordinary_fd);
}

FIXTURE_TEARDOWN(mapping)
{
	kvm_munmap(self->mem, self->size);
	kvm_munmap(self->control, self->size);
	kvm_close(self->fd);
	kvm_close(self->ordinary_fd);
	kvm_vm_free(self->vm);
	kvm_vm_free(self->ordinary_vm);
}

#define mapping_data FIXTURE_DATA(mapping)

static u64 tag(int page)
{
	return 0x1234567800000000ull + page;
}

static void fill(mapping_data *self)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		*(u64 *)(self->mem + i * page_size) = tag(i);
		*(u64 *)(self->control + i * page_size) = tag(i);
	}
}

static void convert_page(mapping_data *self, u64 attributes)
{
	u64 error_offset;
	int r = __try_convert(self->fd, PRIVATE_PAGE * page_size, page_size, attributes,
			      &error_offset);

	TEST_ASSERT(!r, "Failed to convert to %s: %s",
		    attributes ? "private" : "shared", strerror(r));
}

static void check(mapping_data *self, const char *what, bool private)
{
	u64 val;
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		u64 *p = (u64 *)(self->mem + i * page_size);

		if (private && i == PRIVATE_PAGE) {
			TEST_EXPECT_SIGBUS(READ_ONCE(*p));
			TEST_EXPECT_SIGBUS(WRITE_ONCE(*p, 0));
			continue;
		}
		val = READ_ONCE(*p);
		TEST_ASSERT(val == tag(i), "%s: 0x%lx in page %d", what, val, i);
		WRITE_ONCE(*p, val);
	}
}

/* What is done to shared memory outlives conversions, and contents outlive both. */
TEST_F(mapping, before)
{
	const struct op *op;
	int r, expected;

	for (op = ops; op < ops + ARRAY_SIZE(ops); op++) {
		if (!is_wanted(op))
			continue;

		fill(self);
		expected = op->fn(self->control, self->size, op->arg);
		r = op->fn(self->mem, self->size, op->arg);
		TEST_ASSERT(r == expected, "%s: %s, but of ordinary memory: %s",
			    op->name, strerror(r), strerror(expected));

		convert_page(self, ATTR_PRIVATE);
		check(self, op->name, true);
		convert_page(self, ATTR_SHARED);
		check(self, op->name, false);
	}
}

/* Private memory is out of reach, whatever is done to its mapping. */
TEST_F(mapping, while_private)
{
	const struct op *op;
	int r, expected;

	for (op = ops; op < ops + ARRAY_SIZE(ops); op++) {
		if (!is_wanted(op))
			continue;

		fill(self);
		convert_page(self, ATTR_PRIVATE);

		expected = op->fn(self->control, self->size, op->arg);
		if (!expected)
			expected = op->private_errno;
		r = op->fn(self->mem, self->size, op->arg);
		TEST_ASSERT(r == expected, "%s: %s, not %s", op->name,
			    strerror(r), strerror(expected));

		check(self, op->name, true);
		convert_page(self, ATTR_SHARED);
		check(self, op->name, false);
	}
}

static void *convert_in_a_loop(void *arg)
{
	mapping_data *self = arg;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		convert_page(self, ATTR_PRIVATE);
		convert_page(self, ATTR_SHARED);
	}
	return NULL;
}

/*
 * Conversions don't fail, and nobody hangs, while it is done, and contents stay.
 * Don't let the system call touch the page that is private at times.
 */
TEST_F(mapping, meanwhile)
{
	pthread_t thread;
	const struct op *op;
	int j, r;

	for (op = ops; op < ops + ARRAY_SIZE(ops); op++) {
		if (!is_wanted(op))
			continue;

		fill(self);
		pthread_create(&thread, NULL, convert_in_a_loop, self);
		for (j = 0; j < NR_ROUNDS / 10; j++) {
			r = op->fn(self->mem, self->size, op->arg);
			if (r && r != op->private_errno && r != EINVAL && r != EBUSY &&
			    r != ENOENT)
				TEST_FAIL("%s: %s", op->name, strerror(r));
		}
		pthread_join(thread, NULL);
		check(self, op->name, false);
	}
}

/* A mapping that has been moved, or made smaller, doesn't keep anything mapped. */
TEST_F(mapping, moved_and_shrunk)
{
	u8 *mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	u8 *there;

	fill(self);
	there = mremap(mem, self->size, 8 * page_size, MREMAP_MAYMOVE);
	TEST_ASSERT(there != MAP_FAILED, "mremap() failed");
	TEST_ASSERT_EQ(*(u64 *)(there + PRIVATE_PAGE * page_size), tag(PRIVATE_PAGE));
	convert_page(self, ATTR_PRIVATE);
	TEST_EXPECT_SIGBUS(READ_ONCE(*(u64 *)(there + PRIVATE_PAGE * page_size)));
	TEST_ASSERT_EQ(*(u64 *)(there + 7 * page_size), tag(7));
	kvm_munmap(there, 8 * page_size);
	convert_page(self, ATTR_SHARED);
	check(self, "moved", false);
}

static int open_uffd(u64 features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int uffd = syscall(__NR_userfaultfd, UFFD_USER_MODE_ONLY | O_CLOEXEC);

	if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api)) {
		close(uffd);
		return -1;
	}
	return uffd;
}

/*
 * Memory that is write-protected by userfaultfd, asynchronously, can be accessed,
 * by the kernel, too, and converted; what is protected stays so until written.
 */
TEST_F(mapping, uffd_wp_async)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)self->mem, .len = self->size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = reg.range,
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int uffd = open_uffd(UFFD_FEATURE_WP_ASYNC), zero, populated, i;

	if (uffd < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg))
		SKIP(return, "Needs asynchronous write protection by userfaultfd");

	zero = open("/dev/zero", O_RDONLY);
	for (populated = 0; populated < 2; populated++) {
		if (populated)
			fill(self);
		else
			TEST_ASSERT(!madvise(self->mem, self->size, MADV_DONTNEED),
				    "madvise() failed");
		TEST_ASSERT(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "Failed to protect");

		convert_page(self, ATTR_PRIVATE);
		TEST_EXPECT_SIGBUS(WRITE_ONCE(*(self->mem + PRIVATE_PAGE * page_size), 1));
		convert_page(self, ATTR_SHARED);

		for (i = 0; i < NR_PAGES; i++) {
			if (i & 1)
				TEST_ASSERT_EQ(read(zero, self->mem + i * page_size, 8), 8);
			WRITE_ONCE(*(u64 *)(self->mem + i * page_size), tag(i));
		}
		check(self, "write-protected", false);
	}
	close(zero);
	close(uffd);
	check(self, "no longer write-protected", false);
}

/* All other modes are refused, as they always were. */
TEST_F(mapping, uffd_modes)
{
	const u64 modes[] = {
		UFFDIO_REGISTER_MODE_MISSING,
		UFFDIO_REGISTER_MODE_MINOR,
		UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_register reg = { 0 };
	int i, uffd = open_uffd(0), errnos[2];

	if (uffd < 0)
		SKIP(return, "Needs userfaultfd");

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		reg.mode = modes[i];
		reg.range.len = self->size;
		reg.range.start = (uintptr_t)self->mem;
		errnos[0] = ioctl(uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
		reg.range.start = (uintptr_t)self->control;
		errnos[1] = ioctl(uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
		TEST_ASSERT_EQ(errnos[0], errnos[1]);
	}
	close(uffd);
}

static void check_pages_stayed(gmem_data *self, const char *what)
{
	struct gmem_info info = {};

	gmem_read_info(self->fd, &info);
	TEST_ASSERT(info.populated == NR_PAGES, "%s: %llu pages are left", what,
		    info.populated);
	check_guest(self);
	check_host(self);
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_all(self);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
}

/*
 * Pages stay where they are, contents and all.  Guests don't take references to what
 * they have mapped, and guest_memfd has no use for PG_dirty: to mm, a private page is
 * one that nobody would miss.
 */
TEST_F(gmem, pages_stay)
{
	const struct op *op;

	for (op = ops; op < ops + ARRAY_SIZE(ops); op++) {
		if (!is_wanted(op))
			continue;

		make_mixed(self);
		op->fn(self->mem, self->size, op->arg);
		check_pages_stayed(self, op->name);
	}
}

/* Only who looks before it is converted can tell which page a private one is. */
TEST_F(gmem, private_page_stays)
{
	char address[32];
	u64 pfn, nr_faults;

	if (!do_host_wide || access(MEMORY "soft_offline_page", W_OK))
		SKIP(return, "Needs option -g, CONFIG_MEMORY_HOTPLUG and root");

	make_mixed(self);

	/* mm keeps what it takes for dirty: have nobody but the guest write to it. */
	convert(self, 2, 1, ATTR_SHARED);
	punch_hole(self->fd, 2 * page_size, page_size);
	guest_fill(self, 2, 1, 0x33);
	pfn = host_pfn(page_hva(self, 2));
	convert(self, 2, 1, ATTR_PRIVATE);
	guest_touch(self, 2, 1);
	nr_faults = nr_guest_faults(self->vcpu);

	snprintf(address, sizeof(address), "0x%lx", pfn * page_size);
	TEST_ASSERT(op_write(MEMORY "soft_offline_page", address),
		    "A private page was soft-offlined");
	guest_touch(self, 2, 1);
	TEST_ASSERT_EQ(nr_guest_faults(self->vcpu), nr_faults);
	check_pages_stayed(self, "soft_offline_page");

	make_mixed(self);
	TEST_ASSERT(offline_memory(pfn), "The memory of a private page was offline");
	check_pages_stayed(self, "offline");
	TEST_ASSERT_EQ(host_pfn(page_hva(self, 2)), pfn);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();

	if (argc > 1 && !strcmp(argv[1], "-g")) {
		do_host_wide = true;
		argv[1] = argv[0];
		argv++;
		argc--;
	}
	gmem_test_init(&argc, argv);

	return test_harness_run(argc, argv);
}
