// SPDX-License-Identifier: GPL-2.0-only
/*
 * What if there's no memory to create, bind, fill or convert a guest_memfd?
 *
 * Have each allocation that a call makes fail, one at a time, until the call
 * gets by without a failure.  No matter which one it was, promise 1 holds: a
 * call that fails has changed no attribute and no contents anywhere.  Running
 * out of memory also disturbs nobody, i.e. all mappings are as before.  And the
 * same call succeeds as soon as there's memory again.
 *
 * What's leaked on the way is for kmemleak to find, except for what keeps a VM
 * alive: that's noticed when the VM is freed.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define NR_PAGES	64

/*
 * Beyond the pages that are looked at, enough of them for the record of attributes
 * to be several levels deep.  KVM may record what's in a few pages in a bitmap, i.e.
 * runs have to be longer than that.
 */
#define NR_MANY_RUNS	200
#define MANY_RUNS_LEN	40
#define NR_FILE_PAGES	(NR_PAGES + 2 * NR_MANY_RUNS * MANY_RUNS_LEN)

#include "fail_nth.h"
#include "guest_memfd_fixture.h"
#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "test_util.h"

/* All the debugging aids make allocations slow, and many. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	900

struct range {
	u64 first;
	u64 nr;
	u64 attributes;
};

/* A call that allocates memory, and what it may and may not change. */
struct sweep {
	const char *name;

	/* Set the stage, from whatever there was before. */
	void (*prepare)(struct sweep *sweep);

	/* Returns 0 or an errno, and doesn't allocate but in the call. */
	int (*call)(struct sweep *sweep);

	/* Nothing has happened.  @err is what call() has returned. */
	void (*check_failed)(struct sweep *sweep, int err);

	/* The call has done what it's supposed to do. */
	void (*check_done)(struct sweep *sweep);

	gmem_data *self;
	const gmem_variant *variant;
	int fail_nth_fd;
	/* Did anything fail in the last call?  If not, there's nothing left to fail. */
	bool injected;

	struct range range;
	/* Runs of this many pages are shared and private in turn, 0 is for shared. */
	u64 run;
	/* Are there many runs in the rest of the file? */
	bool many;
	/* Whatever fails, the call doesn't. */
	bool never_fails;

	/* How many conversions failed for want of memory, and for hardware. */
	int nr_enomem;
	int nr_eio;
	struct pin pin;

	/* What there is to compare with. */
	struct gmem_info info;
	u64 pagemap[NR_PAGES];
	u64 nr_faults;
	int next_fd;
	int new_fd;
};

static void run_sweep(struct sweep *sweep)
{
	int nth, err, nr_failed = 0;

	sweep->injected = true;
	for (nth = 1; sweep->injected; nth++) {
		TEST_ASSERT(nth < FAIL_NTH_MAX, "There's no end of failures");

		sweep->prepare(sweep);

		fail_nth_start(sweep->fail_nth_fd, nth);
		err = sweep->call(sweep);
		sweep->injected = fail_nth_stop(sweep->fail_nth_fd);

		if (err) {
			/*
			 * EFAULT is for copying from and to user space, and EIO for
			 * a page that isn't given back by hardware.
			 */
			TEST_ASSERT(sweep->injected && (err == ENOMEM || err == EFAULT ||
							err == EIO),
				    "%s, fail-nth = %d, injected = %d: errno = %d (%s)",
				    sweep->name, nth, sweep->injected, err,
				    strerror(err));
			sweep->check_failed(sweep, err);
			if (err == EIO)
				sweep->nr_eio++;
			else
				nr_failed++;

			err = sweep->call(sweep);
			TEST_ASSERT(!err, "%s, fail-nth = %d, 2nd try: errno = %d (%s)",
				    sweep->name, nth, err, strerror(err));
		}
		sweep->check_done(sweep);
	}

	/* The last one is the one without a failure. */
	ksft_print_msg("%s: made %d allocations fail, and the call %d times\n",
		       sweep->name, nth - 2, nr_failed);
	TEST_ASSERT(nr_failed || sweep->never_fails, "%s never failed", sweep->name);
	TEST_ASSERT(!nr_failed || !sweep->never_fails, "%s failed", sweep->name);
}

static bool init_sweep(struct sweep *sweep, gmem_data *self, const gmem_variant *variant)
{
	sweep->self = self;
	sweep->variant = variant;
	sweep->fail_nth_fd = fail_nth_open();
	return sweep->fail_nth_fd >= 0;
}

static void read_pagemap(gmem_data *self, u64 *pagemap)
{
	const size_t len = NR_PAGES * sizeof(*pagemap);
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	TEST_ASSERT(fd >= 0, "Failed to open pagemap");
	TEST_ASSERT_EQ(pread(fd, pagemap, len, (unsigned long)self->mem /
			     page_size * sizeof(*pagemap)), len);
	kvm_close(fd);
}

/* Remember what a call that fails must not change. */
static void take_stock(struct sweep *sweep)
{
	gmem_data *self = sweep->self;

	gmem_read_info(self->fd, &sweep->info);
	read_pagemap(self, sweep->pagemap);
	sweep->nr_faults = nr_guest_faults(self->vcpu);
}

/* To be called before the host accesses anything. */
static void check_host_mappings(struct sweep *sweep)
{
	u64 pagemap[NR_PAGES];

	read_pagemap(sweep->self, pagemap);
	TEST_ASSERT(!memcmp(pagemap, sweep->pagemap, sizeof(pagemap)),
		    "%s: the host's mappings have changed", sweep->name);
}

/* To be called after the guest has accessed what it had accessed before. */
static void check_guest_mappings(struct sweep *sweep)
{
	TEST_ASSERT(nr_guest_faults(sweep->self->vcpu) == sweep->nr_faults,
		    "%s: the guest's mappings have changed", sweep->name);
}

static void assert_same_info(struct gmem_info *info, struct gmem_info *expected)
{
	TEST_ASSERT(!memcmp(info, expected, sizeof(*info)),
		    "populated %llu private %llu ranges %llu converted %llu refused %llu, expected %llu %llu %llu %llu %llu",
		    info->populated, info->private, info->ranges,
		    info->converted, info->refused, expected->populated,
		    expected->private, expected->ranges, expected->converted,
		    expected->refused);
}

/*
 * Unlike the library's functions, these don't allocate but in the ioctl.
 */
static int set_region(gmem_data *self, const gmem_variant *variant, u32 slot,
		      u64 first, u64 nr)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = page_gpa(first),
		.memory_size = nr * page_size,
		.userspace_addr = variant->slot_has_hva ?
				  (uintptr_t)page_hva(self, first) : 0,
		.guest_memfd = self->fd,
		.guest_memfd_offset = first * page_size,
	};

	return __vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
}

static int delete_region(gmem_data *self, u32 slot)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_memfd = self->fd,
	};

	return __vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
}

/* The guest gets at some of the pages, and their contents are right. */
static void check_guest_range(gmem_data *self, u64 first, u64 nr)
{
	struct guest_cmd cmd = {
		.op = GUEST_CHECK,
		.gva = page_gpa(first),
		.first = first,
		.nr = nr,
	};
	u64 i;

	for (i = 0; i < nr; i++)
		cmd.tags[i] = self->pages[first + i].tag;

	guest_run(self->vcpu, &cmd);
}

/* A new file, nothing of which is bound, in which runs of pages alternate. */
static void renew_file(struct sweep *sweep)
{
	gmem_data *self = sweep->self;
	u64 i, run = sweep->run, nr_many = sweep->many ? NR_MANY_RUNS : 0;

	teardown_file(self);
	setup_file(self, sweep->variant);

	for (i = 0; i < NR_PAGES; i++)
		host_fill(self, i, 1, 1 + i % 255);

	for (i = run; run && i < NR_PAGES; i += 2 * run)
		convert(self, i, min(run, NR_PAGES - i), ATTR_PRIVATE);

	for (i = 0; i < nr_many; i++)
		gmem_set_private(self->fd, (NR_PAGES + (2 * i + 1) * MANY_RUNS_LEN) *
				 page_size, MANY_RUNS_LEN * page_size);
}

/*
 * Conversions
 */

static void prepare_convert(struct sweep *sweep)
{
	gmem_data *self = sweep->self;

	TEST_ASSERT_EQ(delete_region(self, TEST_SLOT), 0);
	renew_file(sweep);
	TEST_ASSERT_EQ(set_region(self, sweep->variant, TEST_SLOT, 0, NR_FILE_PAGES), 0);

	/* Have both the host and the guest map all they can. */
	check_all(self);

	take_stock(sweep);
}

static int call_convert(struct sweep *sweep)
{
	struct range *range = &sweep->range;
	u64 error_offset;

	return __try_convert(sweep->self->fd, range->first * page_size,
			     range->nr * page_size, range->attributes,
			     &error_offset);
}

static void check_failed_convert(struct sweep *sweep, int err)
{
	gmem_data *self = sweep->self;
	struct gmem_info info;

	check_host_mappings(sweep);

	gmem_read_info(self->fd, &info);
	sweep->info.refused += err != EFAULT;
	sweep->nr_enomem += err == ENOMEM;
	assert_same_info(&info, &sweep->info);

	/* Pages are taken from the guest before it is known whether they can be. */
	check_all(self);
	if (err != EIO)
		check_guest_mappings(sweep);
}

static void check_converted(struct sweep *sweep)
{
	struct range *range = &sweep->range;
	gmem_data *self = sweep->self;
	u64 i;

	for (i = range->first; i < range->first + range->nr && i < NR_PAGES; i++)
		self->pages[i].private = range->attributes;
	check_host(self);

	/* Once is enough, whatever failed before. */
	if (!sweep->injected)
		check_guest(self);
}

struct shape {
	const char *name;
	u64 run;
	bool many;
	struct range range;
};

/*
 * A range of which some pages have the wanted state already can be recorded without
 * any memory, as it has a record.  What's beyond NR_PAGES is shared unless there are
 * many runs.
 */
static bool needs_no_memory(struct sweep *sweep)
{
	struct range *range = &sweep->range;
	u64 i;

	for (i = range->first; i < range->first + range->nr; i++) {
		if (i >= NR_PAGES && sweep->many)
			return true;
		if ((i < NR_PAGES && sweep->run && i / sweep->run % 2) ==
		    !!range->attributes)
			return true;
	}
	return false;
}

/* Returns false if allocations can't be made to fail. */
static bool sweep_convert(gmem_data *self, const gmem_variant *variant,
			  const struct shape *shapes, int nr)
{
	struct sweep sweep = {
		.prepare = prepare_convert,
		.call = call_convert,
		.check_failed = check_failed_convert,
		.check_done = check_converted,
	};
	int i;

	if (!init_sweep(&sweep, self, variant))
		return false;

	for (i = 0; i < nr; i++) {
		sweep.name = shapes[i].name;
		sweep.run = shapes[i].run;
		sweep.many = shapes[i].many;
		sweep.range = shapes[i].range;
		sweep.never_fails = needs_no_memory(&sweep);
		run_sweep(&sweep);
	}
	return true;
}

/* Promise 1: the first conversion of memory that's all the same. */
TEST_F(gmem, convert_first)
{
	static const struct shape shapes[] = {
		{ "one page", 0, false, { 10, 1, ATTR_PRIVATE } },
		{ "the first pages", 0, false, { 0, 2, ATTR_PRIVATE } },
		{ "the last page", 0, false, { NR_PAGES - 1, 1, ATTR_PRIVATE } },
		{ "the whole file", 0, false, { 0, NR_FILE_PAGES, ATTR_PRIVATE } },
	};

	if (!sweep_convert(self, variant, shapes, ARRAY_SIZE(shapes)))
		SKIP(return, FAIL_NTH_NEEDS);
}

/* Promise 1: a few ranges that are split, moved, and merged. */
TEST_F(gmem, convert_few_ranges)
{
	static const struct shape shapes[] = {
		{ "split a shared range", 24, false, { 10, 1, ATTR_PRIVATE } },
		{ "split a private range", 24, false, { 40, 1, ATTR_SHARED } },
		{ "extend a private range", 24, false, { 20, 4, ATTR_PRIVATE } },
		{ "extend a shared range", 24, false, { 24, 4, ATTR_SHARED } },
		{ "merge private ranges", 24, false, { 0, 24, ATTR_PRIVATE } },
		{ "merge shared ranges", 24, false, { 24, 24, ATTR_SHARED } },
		{ "all ranges to private", 24, false, { 0, NR_PAGES, ATTR_PRIVATE } },
		{ "all ranges to shared", 24, false, { 0, NR_PAGES, ATTR_SHARED } },
	};

	if (!sweep_convert(self, variant, shapes, ARRAY_SIZE(shapes)))
		SKIP(return, FAIL_NTH_NEEDS);
}

/* Promises 1 and 2: a page that can't be taken back from the guest stays private. */
TEST_F(gmem, convert_not_given_back)
{
	struct sweep sweep = {
		.name = "not given back",
		.prepare = prepare_convert,
		.call = call_convert,
		.check_failed = check_failed_convert,
		.check_done = check_converted,
		.run = 8,
		.range = { 4, 8, ATTR_SHARED },
		.never_fails = true,
	};

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	run_sweep(&sweep);
	if (!sweep.nr_eio)
		SKIP(return, "Needs CONFIG_KVM_PROVE_GMEM");

	/* There is one failure for each private page, and no other one. */
	TEST_ASSERT_EQ(sweep.nr_eio, 4);
}

/* Promise 5: freeing a page that wasn't given back tries once more. */
TEST_F(gmem, free_not_given_back)
{
	struct sweep sweep = { .range = { 10, 1, ATTR_SHARED } };
	bool injected;
	int err, nth = 0;

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	do {
		convert(self, 10, 1, ATTR_PRIVATE);
		guest_fill(self, 10, 1, 0x77);

		fail_nth_start(sweep.fail_nth_fd, ++nth);
		err = call_convert(&sweep);
		injected = fail_nth_stop(sweep.fail_nth_fd);
	} while (injected && err != EIO);

	if (!injected)
		SKIP(return, "Needs CONFIG_KVM_PROVE_GMEM");

	/* KVM_PROVE_GMEM warns of a page that still is the guest's. */
	punch_hole(self->fd, 10 * page_size, page_size);
	self->pages[10].tag = 0;
	check_all(self);

	convert(self, 10, 1, ATTR_SHARED);
	check_all(self);
}

/* Promise 1: a record that's large. */
TEST_F(gmem, convert_fragmented)
{
	static const struct shape shapes[] = {
		{ "split one of many ranges", 0, true, { 10, 1, ATTR_PRIVATE } },
		{ "merge two of many ranges", 32, true, { 32, 32, ATTR_SHARED } },
		{ "many ranges to private", 1, true, { 20, NR_FILE_PAGES - 40, ATTR_PRIVATE } },
		{ "many ranges to shared", 1, true, { 20, NR_FILE_PAGES - 40, ATTR_SHARED } },
		{ "all of a fragmented file to private", 1, true,
		  { 0, NR_FILE_PAGES, ATTR_PRIVATE } },
		{ "all of a fragmented file to shared", 1, true,
		  { 0, NR_FILE_PAGES, ATTR_SHARED } },
	};

	if (!sweep_convert(self, variant, shapes, ARRAY_SIZE(shapes)))
		SKIP(return, FAIL_NTH_NEEDS);
}

#define PINNED		20

static void prepare_pinned(struct sweep *sweep)
{
	prepare_convert(sweep);
	pin_page(&sweep->pin, page_hva(sweep->self, PINNED));
}

/* What's to be done is to refuse. */
static int call_pinned(struct sweep *sweep)
{
	struct range *range = &sweep->range;
	u64 error_offset;
	int err;

	err = __try_convert(sweep->self->fd, range->first * page_size,
			    range->nr * page_size, range->attributes,
			    &error_offset);
	TEST_ASSERT(err, "A pinned page was converted");
	if (err != EAGAIN)
		return err;

	TEST_ASSERT_EQ(error_offset, PINNED * page_size);
	return 0;
}

/* The host may have to map its pages again, but that's all. */
static void check_refused(struct sweep *sweep)
{
	gmem_data *self = sweep->self;

	check_all(self);
	unpin_page_and_check(&sweep->pin, self->pages[PINNED].tag, PINNED);
}

/*
 * Promise 1: there's no memory, and a reference to a page.  What can be done about the
 * one is to be known before anything is done about the other.
 */
TEST_F(gmem, convert_pinned)
{
	struct sweep sweep = {
		.name = "pinned page",
		.prepare = prepare_pinned,
		.call = call_pinned,
		.check_failed = check_failed_convert,
		.check_done = check_refused,
		.range = { 10, 40, ATTR_PRIVATE },
	};

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	run_sweep(&sweep);
	TEST_ASSERT(sweep.nr_enomem, "There was enough memory all the time");
	TEST_ASSERT_EQ(call_convert(&sweep), 0);
	check_converted(&sweep);
}

/*
 * Creation
 */

/* The file descriptor that's next in line. */
static int next_fd(void)
{
	int fd = dup(STDOUT_FILENO);

	TEST_ASSERT(fd >= 0, "dup() failed");
	kvm_close(fd);
	return fd;
}

static void prepare_create(struct sweep *sweep)
{
	sweep->next_fd = next_fd();
}

static int call_create(struct sweep *sweep)
{
	sweep->new_fd = __vm_create_guest_memfd(sweep->self->vm, page_size,
						sweep->variant->flags);
	return sweep->new_fd < 0 ? errno : 0;
}

static void check_not_created(struct sweep *sweep, int err)
{
	TEST_ASSERT_EQ(next_fd(), sweep->next_fd);
}

static void check_created(struct sweep *sweep)
{
	struct gmem_info info, expected = {
		.size = page_size,
		.flags = sweep->variant->flags,
		.private = !(sweep->variant->flags & GUEST_MEMFD_FLAG_INIT_SHARED),
		.ranges = 1,
	};

	gmem_read_info(sweep->new_fd, &info);
	assert_same_info(&info, &expected);

	kvm_close(sweep->new_fd);
	TEST_ASSERT_EQ(next_fd(), sweep->next_fd);
}

/* There's a new file, or there's nothing new. */
TEST_F(gmem, create)
{
	struct sweep sweep = {
		.name = "create",
		.prepare = prepare_create,
		.call = call_create,
		.check_failed = check_not_created,
		.check_done = check_created,
	};

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	run_sweep(&sweep);
	check_all(self);
}

/*
 * Bindings.  Some of the file is always bound to another slot, which must not be
 * affected.
 */

#define OTHER_SLOT	(TEST_SLOT + 1)
#define OTHER_FIRST	50
#define OTHER_NR	(NR_PAGES - OTHER_FIRST)

static void prepare_bind(struct sweep *sweep)
{
	gmem_data *self = sweep->self;

	/* There's a slot that the fixture or the previous iteration has left. */
	TEST_ASSERT_EQ(delete_region(self, TEST_SLOT), 0);
	delete_region(self, OTHER_SLOT);

	renew_file(sweep);
	TEST_ASSERT_EQ(set_region(self, sweep->variant, OTHER_SLOT, OTHER_FIRST, OTHER_NR), 0);
	check_host(self);
	check_guest_range(self, OTHER_FIRST, OTHER_NR);
	take_stock(sweep);
}

static int call_bind(struct sweep *sweep)
{
	return set_region(sweep->self, sweep->variant, TEST_SLOT,
			  sweep->range.first, sweep->range.nr);
}

static void check_not_bound(struct sweep *sweep, int err)
{
	gmem_data *self = sweep->self;
	struct gmem_info info;

	/* There's no such slot. */
	TEST_ASSERT_EQ(delete_region(self, TEST_SLOT), EINVAL);

	check_host_mappings(sweep);
	gmem_read_info(self->fd, &info);
	assert_same_info(&info, &sweep->info);
	check_host(self);
	check_guest_range(self, OTHER_FIRST, OTHER_NR);
	check_guest_mappings(sweep);

	/* There's no trace of a binding that gets in the way of another slot. */
	TEST_ASSERT_EQ(set_region(self, sweep->variant, OTHER_SLOT + 1, 0, OTHER_FIRST), 0);
	check_guest_range(self, 0, OTHER_FIRST);
	TEST_ASSERT_EQ(delete_region(self, OTHER_SLOT + 1), 0);
}

static void check_bound(struct sweep *sweep)
{
	gmem_data *self = sweep->self;

	check_host(self);
	check_guest_range(self, sweep->range.first, sweep->range.nr);
	check_guest_range(self, OTHER_FIRST, OTHER_NR);
}

/* Promise 1: there's a new slot, or there's nothing new. */
TEST_F(gmem, bind)
{
	static const struct range ranges[] = {
		{ 0, 1 },
		{ 3, 40 },
		{ 0, OTHER_FIRST },
	};
	struct sweep sweep = {
		.name = "bind",
		.prepare = prepare_bind,
		.call = call_bind,
		.check_failed = check_not_bound,
		.check_done = check_bound,
		.run = 3,
	};
	int i;

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		sweep.range = ranges[i];
		run_sweep(&sweep);
	}
}

static int call_unbind(struct sweep *sweep)
{
	return delete_region(sweep->self, TEST_SLOT);
}

static void check_still_bound(struct sweep *sweep, int err)
{
	struct gmem_info info;

	check_host_mappings(sweep);
	gmem_read_info(sweep->self->fd, &info);
	assert_same_info(&info, &sweep->info);
	check_all(sweep->self);
	check_guest_mappings(sweep);
}

static void check_unbound(struct sweep *sweep)
{
	gmem_data *self = sweep->self;

	TEST_ASSERT_EQ(delete_region(self, TEST_SLOT), EINVAL);

	/* The file doesn't care, and is free to be bound anew. */
	TEST_ASSERT_EQ(set_region(self, sweep->variant, TEST_SLOT, 0, NR_FILE_PAGES), 0);
	check_all(self);
}

/* Promise 1: the slot is gone, or is there as ever. */
TEST_F(gmem, unbind)
{
	struct sweep sweep = {
		.name = "unbind",
		.prepare = prepare_convert,
		.call = call_unbind,
		.check_failed = check_still_bound,
		.check_done = check_unbound,
		.run = 3,
	};

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	run_sweep(&sweep);
}

/*
 * Memory that isn't there yet, and neither are the host's page tables for it.
 */

static void prepare_missing_page(struct sweep *sweep)
{
	gmem_data *self = sweep->self;
	u64 page = sweep->range.first;

	prepare_convert(sweep);

	punch_hole(self->fd, page * page_size, page_size);
	self->pages[page].tag = 0;

	kvm_munmap(self->mem, self->size);
	self->mem = mmap_gmem(self->fd, self->size);
}

static int call_allocate(struct sweep *sweep)
{
	return fallocate(sweep->self->fd, FALLOC_FL_KEEP_SIZE,
			 sweep->range.first * page_size, page_size) ? errno : 0;
}

static int call_populate(struct sweep *sweep)
{
	return madvise(page_hva(sweep->self, sweep->range.first), page_size,
		       MADV_POPULATE_WRITE) ? errno : 0;
}

static void prepare_guest_access(struct sweep *sweep)
{
	struct guest_cmd cmd = {
		.op = GUEST_CHECK,
		.gva = page_gpa(sweep->range.first),
		.first = sweep->range.first,
		.nr = 1,
	};

	prepare_missing_page(sweep);
	write_guest_global(sweep->self->vm, guest_cmd, cmd);
}

static int call_guest(struct sweep *sweep)
{
	return __vcpu_run(sweep->self->vcpu) ? errno : 0;
}

/* There may, or may not, be a page by now, but that's all. */
static void check_still_missing(struct sweep *sweep, int err)
{
	struct gmem_info info;

	gmem_read_info(sweep->self->fd, &info);
	TEST_ASSERT(info.populated == NR_PAGES || info.populated == NR_PAGES - 1,
		    "There are %llu pages", info.populated);
	sweep->info.populated = info.populated;
	assert_same_info(&info, &sweep->info);
}

static void check_no_longer_missing(struct sweep *sweep)
{
	struct gmem_info info;

	gmem_read_info(sweep->self->fd, &info);
	sweep->info.populated = NR_PAGES;
	assert_same_info(&info, &sweep->info);
	check_all(sweep->self);
}

static void check_guest_access(struct sweep *sweep)
{
	struct kvm_vcpu *vcpu = sweep->self->vcpu;
	struct ucall uc;

	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC, "Unexpected exit: reason %u (%s)",
		    vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));
	check_no_longer_missing(sweep);
}

/* Promises 1 and 5: pages come as what they are, and zeroed, or not at all. */
TEST_F(gmem, missing_pages)
{
	/* With runs of three pages, one that's shared and one that's private. */
	static const u64 pages[] = { 7, 9 };
	struct sweep sweep = {
		.check_failed = check_still_missing,
		.run = 3,
	};
	int i;

	if (!init_sweep(&sweep, self, variant))
		SKIP(return, FAIL_NTH_NEEDS);

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		sweep.range.first = pages[i];

		sweep.name = "fallocate()";
		sweep.prepare = prepare_missing_page;
		sweep.call = call_allocate;
		sweep.check_done = check_no_longer_missing;
		run_sweep(&sweep);

		sweep.name = "guest access";
		sweep.prepare = prepare_guest_access;
		sweep.call = call_guest;
		sweep.check_done = check_guest_access;
		run_sweep(&sweep);
	}

	sweep.range.first = pages[0];
	sweep.name = "host access";
	sweep.prepare = prepare_missing_page;
	sweep.call = call_populate;
	sweep.check_done = check_no_longer_missing;
	run_sweep(&sweep);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	gmem_test_init(&argc, argv);

	return test_harness_run(argc, argv);
}
