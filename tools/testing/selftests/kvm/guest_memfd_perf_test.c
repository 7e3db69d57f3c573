// SPDX-License-Identifier: GPL-2.0-only
/*
 * What do conversions of guest memory between private and shared cost?
 *
 * Print figures, one per line, as comma-separated values:
 *
 *	question,variant,tracking,size,direction,value,unit
 *
 * and to get them, do the whole of what a VMM has to do, as "tracking" says:
 *
 *  - "gmem": guest_memfd knows what's private, and conversions are in place.
 *  - "vm":   the VM knows what's private.  Shared memory comes from a memfd, and
 *            private memory from guest_memfd; a conversion also drops the copy
 *            that's out of sight by then ("-drop"), and the next access on the
 *            other side faults in a zeroed page.
 *  - "none": an ordinary VM, all of whose memory is shared, from guest_memfd.
 *
 * "direction" is what memory is converted to, or what it is.
 *
 * Times are in nanoseconds, i.e. in instructions if the test runs in a machine
 * that's emulated at one nanosecond per instruction.  Such times are repeatable,
 * and say nothing of cache misses, or of what happens in parallel.
 *
 * The time that a short call takes is the median of many, as ticks, and freeing
 * what's freed after a grace period, get in the way of some.  What takes longer
 * contains them.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <asm/barrier.h>

#include <linux/falloc.h>
#include <linux/perf_event.h>
#include <linux/sizes.h>

#include "cgroup_util.h"
#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Memory to measure with.  The lowest 4gb have slot0, the PCI hole, and so on. */
#define TEST_SLOT		10
#define TEST_GPA		((gpa_t)SZ_4G)

/* Where the host maps it, always the same so that page tables are, too. */
#define TEST_HVA		((void *)BIT(42))

#define SZ_512G			(512ull * SZ_1G)

enum gmem_tracking {
	TRACK_VM,
	TRACK_GMEM,
	TRACK_NONE,
};

static const char * const tracking_names[] = { "vm", "gmem", "none" };

static size_t page_size;

/* What's between two looks at the clock if nothing is. */
static u64 clock_overhead;

static u64 now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

static u64 since(u64 start)
{
	u64 elapsed = now() - start;

	return elapsed > clock_overhead ? elapsed - clock_overhead : 0;
}

static int compare_u64(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static u64 median(u64 *values, int nr)
{
	qsort(values, nr, sizeof(*values), compare_u64);
	return values[nr / 2];
}

static void calibrate_clock(void)
{
	u64 values[101];
	int i;

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		u64 start = now();

		values[i] = since(start);
	}
	clock_overhead = median(values, ARRAY_SIZE(values));
}

/*
 * A VM, and memory that is bound to a memslot.
 */
struct bench {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	enum gmem_tracking tracking;
	u64 size;
	int gmem;
	/* Where shared memory comes from, and the host's mapping of it. */
	int shared;
	u8 *mem;
	/* What it takes to run the vCPU, in addition to what the guest does. */
	u64 run_overhead;
};

static void report(char question, const char *variant, struct bench *b, u64 size,
		   const char *direction, double value, const char *unit)
{
	printf("%c,%s,%s,", question, variant, tracking_names[b->tracking]);

	if (!size)
		printf("-");
	else if (size >= SZ_1G)
		printf("%luG", size / SZ_1G);
	else if (size >= SZ_1M)
		printf("%luM", size / SZ_1M);
	else
		printf("%luK", size / SZ_1K);

	printf(",%s,%.*f,%s\n", direction, value < 10 ? 3 : value < 1000 ? 1 : 0,
	       value, unit);
	fflush(stdout);
}

static void report_per_page(char question, const char *variant, struct bench *b,
			    u64 size, const char *direction, u64 ns)
{
	report(question, variant, b, size, direction,
	       (double)ns / (size / page_size), "ns/page");
}

static const char *direction_str(bool private)
{
	return private ? "private" : "shared";
}

/*
 * The guest writes to pages when told to.
 */
static struct {
	gva_t gva;
	u64 nr_pages;
} guest_cmd;

static void guest_code(void)
{
	u64 i;

	for (;;) {
		for (i = 0; i < READ_ONCE(guest_cmd.nr_pages); i++)
			WRITE_ONCE(*(u64 *)(guest_cmd.gva + i * page_size), i);
		GUEST_SYNC(0);
	}
}

static u64 __guest_touch(struct bench *b, u64 offset, u64 size)
{
	typeof(guest_cmd) cmd = {
		.gva = TEST_GPA + offset,
		.nr_pages = size / page_size,
	};
	struct ucall uc;
	u64 start, ns;

	write_guest_global(b->vm, guest_cmd, cmd);

	start = now();
	vcpu_run(b->vcpu);
	ns = since(start);

	TEST_ASSERT_EQ(get_ucall(b->vcpu, &uc), UCALL_SYNC);
	return ns;
}

static u64 guest_touch(struct bench *b, u64 offset, u64 size)
{
	u64 ns = __guest_touch(b, offset, size);

	return ns > b->run_overhead ? ns - b->run_overhead : 0;
}

/*
 * Have memory faulted in for the guest.  If KVM does that without leaving and
 * entering the guest for each page, then do without, it's the same all over.
 */
static u64 guest_access(struct bench *b, u64 offset, u64 size)
{
#ifdef __x86_64__
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_GPA + offset,
		.size = size,
	};
	u64 start = now();

	while (range.size)
		vcpu_ioctl(b->vcpu, KVM_PRE_FAULT_MEMORY, &range);
	return since(start);
#else
	return guest_touch(b, offset, size);
#endif
}

static u64 host_access(struct bench *b, u64 offset, u64 size)
{
	u64 i, start;

	start = now();
	for (i = 0; i < size; i += page_size)
		WRITE_ONCE(*(u64 *)(b->mem + offset + i), i);
	return since(start);
}

/* Also goes for the guest, if that takes shared memory from the mapping. */
static void host_unmap(struct bench *b)
{
	kvm_madvise(b->mem, b->size, MADV_DONTNEED);
}

static u64 convert(struct bench *b, u64 offset, u64 size, bool private)
{
	struct kvm_memory_attributes2 gmem_attr = {
		.offset = offset,
		.size = size,
		.attributes = private ? ATTR_PRIVATE : ATTR_SHARED,
	};
	struct kvm_memory_attributes vm_attr = {
		.address = TEST_GPA + offset,
		.size = size,
		.attributes = private ? ATTR_PRIVATE : ATTR_SHARED,
	};
	u64 start, ns;
	int r;

	/* Not by the library's functions, which cost as much as a short call. */
	start = now();
	if (b->tracking == TRACK_GMEM)
		r = ioctl(b->gmem, KVM_SET_MEMORY_ATTRIBUTES2, &gmem_attr);
	else
		r = ioctl(b->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &vm_attr);
	ns = since(start);

	TEST_ASSERT(!r, "KVM refused, errno = %d (%s)", errno, strerror(errno));
	return ns;
}

/* Drop the copy that is out of sight after a conversion. */
static u64 drop(struct bench *b, u64 offset, u64 size, bool private)
{
	u64 start = now();

	if (b->tracking != TRACK_VM)
		return 0;

	kvm_fallocate(private ? b->shared : b->gmem,
		      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size);
	return since(start);
}

static void set_memslot(struct bench *b, u64 size)
{
	vm_set_user_memory_region2(b->vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD,
				   TEST_GPA, size, b->mem, b->gmem, 0);
}

/* Unmap everything from the guest, and nothing from the host. */
static void guest_unmap(struct bench *b)
{
	set_memslot(b, 0);
	set_memslot(b, b->size);
}

static void create_memory(struct bench *b, u64 size)
{
	b->size = size;
	if (b->tracking == TRACK_VM) {
		b->gmem = vm_create_guest_memfd(b->vm, size, 0);
		b->shared = kvm_memfd_alloc(size, false);
	} else {
		b->gmem = vm_create_guest_memfd(b->vm, size, MMAP_SHARED);
		b->shared = b->gmem;
	}
	b->mem = mmap(TEST_HVA, size, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED_NOREPLACE, b->shared, 0);
	TEST_ASSERT(b->mem == TEST_HVA, "mmap() failed");
	set_memslot(b, size);
}

/* The guest can access the first @guest_size bytes. */
static void create_bench(struct bench *b, enum gmem_tracking tracking, u64 size,
			 u64 guest_size)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = tracking == TRACK_NONE ? VM_TYPE_DEFAULT : PRIVATE_VM_TYPE,
	};
	u64 values[11];
	int i;

	memset(b, 0, sizeof(*b));
	b->tracking = tracking;
	b->vm = __vm_create(shape, 1, guest_size / page_size);
	if (tracking == TRACK_GMEM)
		vm_enable_gmem_attributes(b->vm);
	b->vcpu = vm_vcpu_add(b->vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(b->vm);

	sync_global_to_guest(b->vm, page_size);
	if (guest_size)
		virt_map(b->vm, TEST_GPA, TEST_GPA,
			 vm_calc_num_guest_pages(b->vm->mode, guest_size));
	create_memory(b, size);

	for (i = 0; i < ARRAY_SIZE(values); i++)
		values[i] = __guest_touch(b, 0, 0);
	b->run_overhead = median(values, ARRAY_SIZE(values));
}

static void destroy_bench(struct bench *b)
{
	set_memslot(b, 0);
	kvm_munmap(b->mem, b->size);
	kvm_close(b->gmem);
	if (b->shared != b->gmem)
		kvm_close(b->shared);
	kvm_vm_free(b->vm);
}

/*
 * To private, and back to shared.
 */
enum step {
	TO_PRIVATE,
	DROP_SHARED,
	GUEST_ACCESS,
	TO_SHARED,
	DROP_PRIVATE,
	HOST_ACCESS,
	NR_STEPS,
};

#define BY_HOST		BIT(0)
#define BY_GUEST	BIT(1)

#define MAX_REPEAT	101

/*
 * Convert a range that is mapped as in @mapped there and back again.  Access it
 * in between, and at the end, if @access says that the guest, or the host, does.
 */
static void round_trip(struct bench *b, u64 size, int mapped, int access,
		       u64 *ns)
{
	memset(ns, 0, NR_STEPS * sizeof(*ns));

	if (mapped & BY_HOST)
		host_access(b, 0, size);
	else
		host_unmap(b);
	if (mapped & BY_GUEST)
		guest_access(b, 0, size);

	ns[TO_PRIVATE] = convert(b, 0, size, true);
	ns[DROP_SHARED] = drop(b, 0, size, true);
	if (access & BY_GUEST)
		ns[GUEST_ACCESS] = guest_access(b, 0, size);
	ns[TO_SHARED] = convert(b, 0, size, false);
	ns[DROP_PRIVATE] = drop(b, 0, size, false);
	if (access & BY_HOST)
		ns[HOST_ACCESS] = host_access(b, 0, size);
}

/* The median of each step, not counting the first time. */
static void round_trips(struct bench *b, u64 size, int mapped, int access,
			int repeat, u64 *ns)
{
	u64 values[NR_STEPS][MAX_REPEAT];
	int i, step;

	for (i = -1; i < repeat; i++) {
		round_trip(b, size, mapped, access, ns);
		for (step = 0; i >= 0 && step < NR_STEPS; step++)
			values[step][i] = ns[step];
	}
	for (step = 0; step < NR_STEPS; step++)
		ns[step] = median(values[step], repeat);
}

static int nr_repeats(u64 size)
{
	if (size <= SZ_64K)
		return MAX_REPEAT;
	return size <= SZ_16M ? 11 : 1;
}

/* (a) Nothing is populated. */
static void bench_a_size(struct bench *b, u64 size)
{
	const bool whole = size == b->size;
	const char *variant = whole ? "whole" : "part";
	const char *variant_drop = whole ? "whole-drop" : "part-drop";
	u64 ns[NR_STEPS], values[11];
	int i, private;

	round_trips(b, size, 0, 0,
		    b->tracking == TRACK_GMEM ? MAX_REPEAT : nr_repeats(size), ns);

	report('a', variant, b, size, "private", ns[TO_PRIVATE], "ns");
	report('a', variant, b, size, "shared", ns[TO_SHARED], "ns");
	if (b->tracking != TRACK_VM)
		return;

	/* There's nothing to drop, do that until conversions are digested. */
	for (private = 1; private >= 0; private--) {
		for (i = 0; i < ARRAY_SIZE(values); i++)
			values[i] = drop(b, 0, size, private);
		report('a', variant_drop, b, size, direction_str(private),
		       median(values, ARRAY_SIZE(values)), "ns");
	}
}

/* All of the file, and of the memslot, or the beginning of a large one. */
static void bench_a(enum gmem_tracking tracking)
{
	const u64 sizes[] = { SZ_4K, SZ_2M, SZ_256M, SZ_1G, SZ_512G };
	/* What isn't in place takes forever, and all the memory, to do more. */
	const int last = tracking == TRACK_VM ? 3 : 4;
	struct bench b;
	int i;

	for (i = 0; i <= last; i++) {
		create_bench(&b, tracking, max_t(u64, sizes[i], page_size), 0);
		bench_a_size(&b, b.size);
		destroy_bench(&b);
	}

	create_bench(&b, tracking, sizes[last], 0);
	for (i = 0; i < last; i++)
		bench_a_size(&b, max_t(u64, sizes[i], page_size));
	destroy_bench(&b);
}

static u64 max_populated = SZ_256M;

static void report_conversion(const char *mapped, struct bench *b, u64 size,
			      bool private, u64 *ns)
{
	const char *direction = direction_str(private);
	char variant[64];

	report_per_page('b', mapped, b, size, direction,
			ns[private ? TO_PRIVATE : TO_SHARED]);
	if (b->tracking != TRACK_VM)
		return;

	snprintf(variant, sizeof(variant), "%s-drop", mapped);
	report_per_page('b', variant, b, size, direction,
			ns[private ? DROP_SHARED : DROP_PRIVATE]);
}

/* (b) All is populated, and mapped by someone. */
static void bench_b_size(struct bench *b, u64 size)
{
	int repeat = nr_repeats(size), step;
	u64 ns[NR_STEPS], total = 0;

	/*
	 * Mapped by the host, then converted to private, accessed by the guest,
	 * converted to shared, accessed by the host.
	 */
	round_trips(b, size, BY_HOST, BY_HOST | BY_GUEST, repeat, ns);
	for (step = 0; step < NR_STEPS; step++)
		total += ns[step];

	report_conversion("host", b, size, true, ns);
	report_per_page('b', "guest-access", b, size, "private", ns[GUEST_ACCESS]);
	report_conversion("guest", b, size, false, ns);
	report_per_page('b', "host-access", b, size, "shared", ns[HOST_ACCESS]);
	report_per_page('b', "roundtrip", b, size, "both", total);

	round_trips(b, size, BY_HOST | BY_GUEST, BY_HOST, repeat, ns);
	report_conversion("both", b, size, true, ns);

	/*
	 * With two backends, what wasn't accessed isn't populated, and what's
	 * mapped by the guest is mapped by the host.
	 */
	if (b->tracking != TRACK_GMEM)
		return;
	report_conversion("unmapped", b, size, false, ns);

	round_trips(b, size, BY_GUEST, 0, repeat, ns);
	report_conversion("guest", b, size, true, ns);
}

static void bench_b(enum gmem_tracking tracking)
{
	const u64 sizes[] = { SZ_4K, SZ_2M, SZ_256M };
	struct bench b;
	int i;

	create_bench(&b, tracking, max_populated, max_populated);
	for (i = 0; i < ARRAY_SIZE(sizes) && sizes[i] <= max_populated; i++)
		bench_b_size(&b, max_t(u64, sizes[i], page_size));
	destroy_bench(&b);
}

/*
 * (c) Some, or all, of the range was converted before.
 */

/* There's nothing to do. */
static void bench_c_again(enum gmem_tracking tracking, u64 size, bool populate)
{
	u64 values[11];
	struct bench b;
	int i, private;

	create_bench(&b, tracking, size, populate ? size : 0);
	for (private = 1; private >= 0; private--) {
		convert(&b, 0, size, private);
		if (populate)
			guest_access(&b, 0, size);
		for (i = 0; i < ARRAY_SIZE(values); i++)
			values[i] = convert(&b, 0, size, private);
		report('c', populate ? "again-populated" : "again", &b, size,
		       direction_str(private), median(values, ARRAY_SIZE(values)),
		       "ns");
	}
	destroy_bench(&b);
}

/*
 * Only what uses memory is measured in a memory cgroup.  Nothing is charged to
 * the root, which is where everything else is measured.
 */
static char cgroup_root[PATH_MAX];

static char *enter_cgroup(void)
{
	char *cgroup = cg_name(cgroup_root, "guest_memfd_perf_test");

	TEST_ASSERT(!cg_create(cgroup), "Failed to create cgroup %s", cgroup);
	TEST_ASSERT(!cg_enter_current(cgroup), "Failed to enter cgroup %s", cgroup);
	return cgroup;
}

static void leave_cgroup(char *cgroup)
{
	TEST_ASSERT(!cg_enter_current(cgroup_root), "Failed to leave cgroup %s", cgroup);
	TEST_ASSERT(!cg_destroy(cgroup), "Failed to destroy cgroup %s", cgroup);
	free(cgroup);
}

static long read_meminfo(const char *key)
{
	char buf[4096], *line;

	TEST_ASSERT(read_text("/proc/meminfo", buf, sizeof(buf)) > 0,
		    "Failed to read /proc/meminfo");
	line = strstr(buf, key);
	TEST_ASSERT(line, "There's no %s in /proc/meminfo", key);
	return atol(line + strlen(key)) * SZ_1K;
}

/* The kernel's small objects: what's charged to the cgroup, and what there is. */
struct slab {
	long charged;
	long all;
};

static struct slab read_slab(const char *cgroup)
{
	struct slab slab;

	/* Have the kernel free what it replaced, which is up to RCU. */
	usleep(500000);

	slab.charged = cg_read_key_long(cgroup, "memory.stat", "slab ");
	slab.all = read_meminfo("Slab:");
	return slab;
}

static u64 convert_each(struct bench *b, u32 *pages, u32 nr, bool private)
{
	u64 ns = 0;
	u32 i;

	for (i = 0; i < nr; i++)
		ns += convert(b, pages[i] * page_size, page_size, private);
	return ns;
}

/* One by one, make pages private that have no private neighbours, and undo it. */
static void bench_c_isolated(const char *variant, enum gmem_tracking tracking,
			     u64 size, u32 *pages, u32 nr)
{
	struct slab slab[3];
	struct bench b;
	char *cgroup, buf[64];
	int private;

	create_bench(&b, tracking, size, 0);

	for (private = 1; private >= 0; private--)
		report('c', variant, &b, 0, direction_str(private),
		       (double)convert_each(&b, pages, nr, private) / nr, "ns/call");

	/*
	 * Use up what's free in the kernel's caches first, before having a look
	 * at whether everything is charged.
	 */
	cgroup = enter_cgroup();
	slab[0] = read_slab(cgroup);
	convert_each(&b, pages, nr / 2, true);
	slab[1] = read_slab(cgroup);
	convert_each(&b, pages + nr / 2, nr - nr / 2, true);
	slab[2] = read_slab(cgroup);

	snprintf(buf, sizeof(buf), "%s-memory", variant);
	report('c', buf, &b, 0, "private",
	       (double)(slab[2].charged - slab[0].charged) / nr, "bytes/page");
	snprintf(buf, sizeof(buf), "%s-charged", variant);
	report('c', buf, &b, 0, "private",
	       100.0 * (slab[2].charged - slab[1].charged) /
	       (slab[2].all - slab[1].all), "%");

	destroy_bench(&b);
	leave_cgroup(cgroup);
}

static void bench_c_alternate(enum gmem_tracking tracking)
{
	const u32 nr = SZ_32K;
	u32 i, *pages = calloc(nr, sizeof(*pages));

	TEST_ASSERT(pages, "calloc() failed");
	for (i = 0; i < nr; i++)
		pages[i] = 2 * i + 1;
	bench_c_isolated("alternate", tracking, 2 * nr * page_size, pages, nr);
	free(pages);
}

/* One in 256 pages, the same in every run. */
static void bench_c_random(enum gmem_tracking tracking)
{
	struct kvm_random_state rng = new_kvm_random_state(1);
	const u32 nr = SZ_32K, nr_pages = nr * 256;
	u32 i, page, *pages = calloc(nr, sizeof(*pages));
	bool *taken = calloc(nr_pages + 2, sizeof(*taken));

	TEST_ASSERT(pages && taken, "calloc() failed");
	for (i = 0; i < nr;) {
		page = kvm_random_u32_in_range(&rng, 0, nr_pages - 1);
		if (taken[page] || taken[page + 1] || taken[page + 2])
			continue;
		taken[page + 1] = true;
		pages[i++] = page;
	}
	bench_c_isolated("random", tracking, nr_pages * page_size, pages, nr);
	free(taken);
	free(pages);
}

/* Every other page was converted before, and everything is mapped. */
static void bench_c_mixed(enum gmem_tracking tracking, u64 size)
{
	struct bench b;
	int private;
	u64 i;

	create_bench(&b, tracking, size, size);
	for (private = 1; private >= 0; private--) {
		host_access(&b, 0, size);
		for (i = 0; i < size; i += 2 * page_size) {
			convert(&b, i, page_size, true);
			drop(&b, i, page_size, true);
		}
		guest_access(&b, 0, size);

		report_per_page('c', "mixed", &b, size, direction_str(private),
				convert(&b, 0, size, private));

		drop(&b, 0, size, private);
		convert(&b, 0, size, false);
		drop(&b, 0, size, false);
	}
	destroy_bench(&b);
}

/* The last page is in use. */
static void bench_c_refused(u64 size)
{
	struct iovec iov = { .iov_len = page_size };
	u64 refused[5], refault[5], error_offset = 0, start;
	struct bench b;
	int i, fds[2];

	create_bench(&b, TRACK_GMEM, size, 0);
	host_access(&b, 0, size);

	TEST_ASSERT(!pipe(fds), "pipe() failed");
	iov.iov_base = b.mem + size - page_size;
	TEST_ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), page_size);

	for (i = 0; i < ARRAY_SIZE(refused); i++) {
		start = now();
		TEST_ASSERT_EQ(__gmem_set_memory_attributes(b.gmem, 0, size,
							    KVM_MEMORY_ATTRIBUTE_PRIVATE,
							    &error_offset), -1);
		refused[i] = since(start);
		TEST_ASSERT_EQ(errno, EAGAIN);
		TEST_ASSERT_EQ(error_offset, size - page_size);
		refault[i] = host_access(&b, 0, size);
	}
	kvm_close(fds[0]);
	kvm_close(fds[1]);

	report_per_page('c', "refused", &b, size, "private",
			median(refused, ARRAY_SIZE(refused)));
	report_per_page('c', "refused-access", &b, size, "shared",
			median(refault, ARRAY_SIZE(refault)));
	destroy_bench(&b);
}

static void bench_c(enum gmem_tracking tracking)
{
	bench_c_again(tracking, page_size, false);
	bench_c_again(tracking, tracking == TRACK_VM ? SZ_256M : SZ_512G, false);
	bench_c_again(tracking, SZ_64M, true);
	bench_c_alternate(tracking);
	bench_c_random(tracking);
	bench_c_mixed(tracking, SZ_64M);
	if (tracking == TRACK_GMEM)
		bench_c_refused(SZ_64M);
}

/* (d) A fault on a page that is populated, and just isn't mapped. */
static void bench_d_fault(struct bench *b, const char *variant, bool private,
			  void (*unmap)(struct bench *b),
			  u64 (*access)(struct bench *b, u64 offset, u64 size))
{
	u64 values[3];
	int i;

	/* Populate. */
	access(b, 0, b->size);

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		unmap(b);
		values[i] = access(b, 0, b->size);
	}
	report_per_page('d', variant, b, b->size, direction_str(private),
			median(values, ARRAY_SIZE(values)));
}

static void bench_d(enum gmem_tracking tracking)
{
	struct bench b;
	int private;

	create_bench(&b, tracking, SZ_16M, SZ_16M);
	bench_d_fault(&b, "host", false, host_unmap, host_access);

	for (private = 0; private <= (tracking != TRACK_NONE); private++) {
		if (private)
			convert(&b, 0, b.size, private);
		bench_d_fault(&b, "guest", private, guest_unmap, guest_access);
		bench_d_fault(&b, "guest-touch", private, guest_unmap, guest_touch);
	}
	destroy_bench(&b);
}

/*
 * (e) How long does a vCPU wait that has nothing to do with the conversion?
 *
 * If it isn't any more urgent than the conversion, then the scheduler has a say,
 * in addition to those who hold locks.  A real-time vCPU, in contrast, wakes up
 * as soon as the kernel can be preempted, which is how long e.g. mmu_lock is held
 * at most, and then waits for as long as what it needs to fault is locked.
 */
struct prober {
	struct bench *b;
	/* Memory to fault on, which is private and not mapped. */
	u64 offset;
	u64 size;
	bool realtime;
	bool stop;
	u64 nr_faults;
	u64 longest_fault;
	u64 longest_wakeup;
};

#define PROBE_PERIOD	50000

static void probe_wait(struct prober *p)
{
	const u64 when = now() + PROBE_PERIOD;
	const struct timespec ts = {
		.tv_sec = when / NSEC_PER_SEC,
		.tv_nsec = when % NSEC_PER_SEC,
	};

	if (!p->realtime) {
		while (now() < when)
			;
		return;
	}

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	p->longest_wakeup = max(p->longest_wakeup, since(when));
}

static void *probe(void *data)
{
	struct sched_param param = { .sched_priority = 1 };
	struct prober *p = data;
	u64 offset, ns;

	TEST_ASSERT(!p->realtime || !sched_setscheduler(0, SCHED_FIFO, &param),
		    "sched_setscheduler() failed");

	for (offset = p->offset; !READ_ONCE(p->stop); offset += page_size) {
		TEST_ASSERT(offset < p->offset + p->size,
			    "There's no memory left to fault on");

		probe_wait(p);
		ns = guest_touch(p->b, offset, page_size);
		p->longest_fault = max(p->longest_fault, ns);
		WRITE_ONCE(p->nr_faults, p->nr_faults + 1);
	}
	return NULL;
}

static void bench_e_convert(struct bench *b, u64 size, bool realtime, bool private)
{
	struct prober p = {
		.b = b,
		.offset = size,
		.size = b->size - size,
		.realtime = realtime,
	};
	pthread_t thread;

	guest_unmap(b);
	if (private)
		host_access(b, 0, size);
	else
		guest_access(b, 0, size);

	kvm_pthread_create(&thread, NULL, probe, &p);
	while (READ_ONCE(p.nr_faults) < 10)
		sched_yield();

	convert(b, 0, size, private);

	WRITE_ONCE(p.stop, true);
	kvm_pthread_join(thread, NULL);
	drop(b, 0, size, private);

	report('e', realtime ? "rt-fault" : "fault", b, size,
	       direction_str(private), p.longest_fault, "ns");
	if (realtime)
		report('e', "rt-wakeup", b, size, direction_str(private),
		       p.longest_wakeup, "ns");
}

static void bench_e(enum gmem_tracking tracking)
{
	const u64 rest = SZ_64M, size = SZ_512M + SZ_256M;
	struct bench b;

	create_bench(&b, tracking, SZ_256M + rest, SZ_256M + rest);
	convert(&b, SZ_256M, rest, true);
	bench_e_convert(&b, SZ_256M, true, true);
	bench_e_convert(&b, SZ_256M, true, false);
	destroy_bench(&b);

	create_bench(&b, tracking, size + rest, size + rest);
	convert(&b, size, rest, true);
	bench_e_convert(&b, size, false, true);
	destroy_bench(&b);
}

/* (f) How much memory does it take to access all of it from both sides? */
static void bench_f_peak(enum gmem_tracking tracking, u64 size, bool do_drop)
{
	char *cgroup = enter_cgroup();
	u64 ns[NR_STEPS];
	struct bench b;

	create_bench(&b, tracking, size, size);
	if (do_drop) {
		round_trip(&b, size, BY_HOST, BY_HOST | BY_GUEST, ns);
	} else {
		host_access(&b, 0, size);
		convert(&b, 0, size, true);
		guest_access(&b, 0, size);
	}
	report('f', do_drop ? "peak" : "peak-keep", &b, size, "both",
	       (double)cg_read_long(cgroup, "memory.peak") / size, "of size");

	destroy_bench(&b);
	leave_cgroup(cgroup);
}

/* With two backends, a VMM may keep the copy that's out of sight. */
static void bench_f(enum gmem_tracking tracking)
{
	bench_f_peak(tracking, SZ_64M, true);
	if (tracking == TRACK_VM)
		bench_f_peak(tracking, SZ_64M, false);
}

/*
 * (p) Which functions of the kernel does the time of questions a and b go to?  Have
 * it sample where it is, which interrupts just those calls that are asked about.
 */
#define PROFILE_PERIOD	20000
#define PROFILE_RING	SZ_1M
#define PROFILE_TOP	12

struct symbol {
	u64 address;
	u64 nr_samples;
	char name[64];
};

struct profile {
	int fd;
	struct perf_event_mmap_page *ring;
	/* Sorted by address. */
	struct symbol *symbols;
	int nr_symbols;
	u64 nr_samples;
};

static int compare_address(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

static int compare_samples(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->nr_samples > y->nr_samples ? -1 : x->nr_samples < y->nr_samples;
}

static void read_symbols(struct profile *p)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	struct symbol symbol = {};
	char type;

	TEST_ASSERT(file, "Failed to open /proc/kallsyms");
	while (fscanf(file, "%lx %c %63s%*[^\n]", &symbol.address, &type,
		      symbol.name) == 3) {
		if (!strchr("tTwW", type))
			continue;

		if (!(p->nr_symbols % SZ_4K))
			p->symbols = realloc(p->symbols, sizeof(symbol) *
					     (p->nr_symbols + SZ_4K));
		TEST_ASSERT(p->symbols, "realloc() failed");
		p->symbols[p->nr_symbols++] = symbol;
	}
	fclose(file);

	qsort(p->symbols, p->nr_symbols, sizeof(symbol), compare_address);
	TEST_ASSERT(p->nr_symbols && p->symbols[0].address,
		    "/proc/kallsyms has no addresses, run this as root");
}

/* Until it has found a clock to trust, a kernel that just booted has but ticks. */
static void wait_for_high_resolution_timers(void)
{
	struct timespec ts;

	do {
		sched_yield();
		TEST_ASSERT(!clock_getres(CLOCK_MONOTONIC, &ts), "clock_getres() failed");
	} while (ts.tv_nsec > 1);
}

static void create_profile(struct profile *p)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_CPU_CLOCK,
		.sample_period = PROFILE_PERIOD,
		.sample_type = PERF_SAMPLE_IP,
		.disabled = 1,
		.exclude_user = 1,
	};

	memset(p, 0, sizeof(*p));
	read_symbols(p);
	wait_for_high_resolution_timers();

	p->fd = syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
	TEST_ASSERT(p->fd >= 0, "perf_event_open() failed, errno = %d (%s)",
		    errno, strerror(errno));
	p->ring = kvm_mmap(page_size + PROFILE_RING, PROT_READ | PROT_WRITE,
			   MAP_SHARED, p->fd);
}

static void destroy_profile(struct profile *p)
{
	kvm_munmap(p->ring, page_size + PROFILE_RING);
	kvm_close(p->fd);
	free(p->symbols);
}

static void profile_add(struct profile *p, u64 address)
{
	int first = 0, last = p->nr_symbols - 1;

	while (first < last) {
		int middle = (first + last + 1) / 2;

		if (p->symbols[middle].address <= address)
			first = middle;
		else
			last = middle - 1;
	}
	p->symbols[first].nr_samples++;
	p->nr_samples++;
}

/* Records are multiples of eight bytes, so what's looked at doesn't wrap. */
static void profile_collect(struct profile *p)
{
	void *data = (void *)p->ring + p->ring->data_offset;
	u64 tail = p->ring->data_tail, head;

	/* Pairs with the kernel's barrier between a record and data_head. */
	head = smp_load_acquire(&p->ring->data_head);

	while (tail < head) {
		struct perf_event_header *header = data + tail % PROFILE_RING;

		TEST_ASSERT(header->type != PERF_RECORD_LOST, "Lost samples");
		if (header->type == PERF_RECORD_SAMPLE)
			profile_add(p, *(u64 *)(data + (tail + sizeof(*header)) %
						PROFILE_RING));
		tail += header->size;
	}

	/* The kernel may overwrite what was read; pairs with its dependency. */
	smp_store_release(&p->ring->data_tail, tail);
}

static void profile_call(struct profile *p, struct bench *b,
			 u64 (*call)(struct bench *b, u64 offset, u64 size))
{
	TEST_ASSERT(!ioctl(p->fd, PERF_EVENT_IOC_ENABLE, 0), "Failed to enable");
	call(b, 0, b->size);
	TEST_ASSERT(!ioctl(p->fd, PERF_EVENT_IOC_DISABLE, 0), "Failed to disable");
	profile_collect(p);
}

static void profile_report(struct profile *p, const char *variant, struct bench *b,
			   const char *direction)
{
	struct symbol *symbol = p->symbols;
	char buf[128];

	qsort(p->symbols, p->nr_symbols, sizeof(*symbol), compare_samples);
	for (; symbol < p->symbols + PROFILE_TOP && symbol->nr_samples; symbol++) {
		snprintf(buf, sizeof(buf), "%s:%s", variant, symbol->name);
		report('p', buf, b, b->size, direction,
		       100.0 * symbol->nr_samples / p->nr_samples, "%");
	}

	for (symbol = p->symbols; symbol < p->symbols + p->nr_symbols; symbol++)
		symbol->nr_samples = 0;
	p->nr_samples = 0;
	qsort(p->symbols, p->nr_symbols, sizeof(*symbol), compare_address);
}

static u64 to_private(struct bench *b, u64 offset, u64 size)
{
	return convert(b, offset, size, true);
}

static u64 to_shared(struct bench *b, u64 offset, u64 size)
{
	return convert(b, offset, size, false);
}

/* One call takes less than there is between two samples. */
#define PROFILE_CALLS	20000

static u64 there_and_back(struct bench *b, u64 offset, u64 size)
{
	u64 i, ns = 0;

	for (i = 0; i < PROFILE_CALLS; i++)
		ns += convert(b, offset, size, true) + convert(b, offset, size, false);
	return ns;
}

static void bench_p(enum gmem_tracking tracking)
{
	struct profile p;
	struct bench b;

	create_profile(&p);

	create_bench(&b, tracking, page_size, 0);
	profile_call(&p, &b, there_and_back);
	profile_report(&p, "empty", &b, "both");
	destroy_bench(&b);

	create_bench(&b, tracking, max_populated, max_populated);
	host_access(&b, 0, b.size);
	profile_call(&p, &b, to_private);
	profile_report(&p, "host", &b, "private");
	drop(&b, 0, b.size, true);

	profile_call(&p, &b, guest_access);
	profile_report(&p, "guest-access", &b, "private");

	profile_call(&p, &b, to_shared);
	profile_report(&p, "guest", &b, "shared");
	drop(&b, 0, b.size, false);

	profile_call(&p, &b, host_access);
	profile_report(&p, "host-access", &b, "shared");

	guest_access(&b, 0, b.size);
	profile_call(&p, &b, to_private);
	profile_report(&p, "both", &b, "private");

	destroy_bench(&b);
	destroy_profile(&p);
}

static const struct {
	char name;
	void (*fn)(enum gmem_tracking tracking);
	bool ordinary;
} questions[] = {
	{ 'a', bench_a },
	{ 'b', bench_b },
	{ 'c', bench_c },
	{ 'd', bench_d, .ordinary = true },
	{ 'e', bench_e },
	{ 'f', bench_f },
	{ 'p', bench_p },
};

/* Doesn't depend on what VMs do by default, and works with any kernel. */
static bool has_tracking(enum gmem_tracking tracking)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
		.args[0] = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};
	int kvm_fd, vm_fd;
	bool has;

	if (tracking == TRACK_NONE)
		return true;

	kvm_fd = open_kvm_dev_path_or_exit();
	vm_fd = __kvm_ioctl(kvm_fd, KVM_CREATE_VM, (void *)PRIVATE_VM_TYPE);
	kvm_close(kvm_fd);
	if (vm_fd < 0)
		return false;

	if (tracking == TRACK_GMEM)
		has = !__kvm_ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
	else
		has = __kvm_ioctl(vm_fd, KVM_CHECK_EXTENSION,
				  (void *)KVM_CAP_MEMORY_ATTRIBUTES) > 0;
	kvm_close(vm_fd);
	return has;
}

static void help(const char *name)
{
	puts("");
	printf("usage: %s [-h] [-q questions] [-t tracking] [-s size]\n", name);
	printf(" -q: which questions to answer (default: abcdef; p: profile)\n");
	printf(" -t: vm, gmem or none (default: all that KVM supports)\n");
	printf(" -s: the most memory to populate for question b (default: 256M)\n");
	puts("");
	exit(0);
}

int main(int argc, char *argv[])
{
	const char *wanted = "abcdef", *only = NULL;
	int opt, i, t;

	page_size = getpagesize();

	while ((opt = getopt(argc, argv, "hq:s:t:")) != -1) {
		switch (opt) {
		case 'q':
			wanted = optarg;
			break;
		case 's':
			max_populated = parse_size(optarg);
			break;
		case 't':
			only = optarg;
			break;
		default:
			help(argv[0]);
			break;
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	__TEST_REQUIRE(!cg_find_controller_root(cgroup_root, sizeof(cgroup_root),
						"memory"),
		       "There's no memory cgroup controller");

	calibrate_clock();

	for (i = 0; i < ARRAY_SIZE(questions); i++) {
		if (!strchr(wanted, questions[i].name))
			continue;
		for (t = TRACK_VM; t <= TRACK_NONE; t++) {
			if (t == TRACK_NONE && !questions[i].ordinary)
				continue;
			if (only && strcmp(only, tracking_names[t]))
				continue;
			if (has_tracking(t))
				questions[i].fn(t);
		}
	}
	return 0;
}
