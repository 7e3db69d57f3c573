// SPDX-License-Identifier: GPL-2.0
/*
 * The record of which pages of a guest_memfd are private, in user space: the
 * kernel's own source, compared with an array of bytes that says the same.
 *
 *	guest_memfd [-s SEED] [-n OPERATIONS]
 */
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/types.h>
#include <linux/kernel.h>

#define pgoff_t		unsigned long

#include "../../../virt/kvm/guest_memfd_attributes.c"

#define PRIVATE		8ull
#define MAX_PAGES	4096

/* How many conversions are under way at a time. */
#define MAX_PENDING	8

/* The last page of the largest file possible, and then some. */
#define LAST_PAGE	((pgoff_t)(LLONG_MAX >> 12))

static unsigned long long seed, state;

#define check(cond)							\
do {									\
	if (!(cond)) {							\
		printf("not ok: %s, line %d, -s %llu\n", #cond,		\
		       __LINE__, seed);					\
		abort();						\
	}								\
} while (0)

static unsigned long rnd(unsigned long below)
{
	/* Knuth's MMIX; the upper half is the better one. */
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (state >> 33) % below;
}

static struct kvm_gmem_attributes attrs;
static unsigned char model[MAX_PAGES];
static unsigned long nr_pages;
static pgoff_t base;		/* index of the page that is model[0] */

/* A conversion: its pages are nobody else's until it ends. */
struct pending {
	struct kvm_gmem_range *reserved;
	unsigned long first, nr;
	unsigned char want;
};

static struct pending pending[MAX_PENDING];
static int nr_pending;

static unsigned long model_runs(void)
{
	unsigned long i, nr = 1;

	for (i = 1; i < nr_pages; i++)
		nr += model[i] != model[i - 1];
	return nr;
}

/* Ranges that differ from the initial state: the fewest that there can be. */
static unsigned long model_ranges(void)
{
	unsigned long i, nr = 0;

	for (i = 0; i < nr_pages; i++)
		nr += model[i] != attrs.initial &&
		      (!i || model[i - 1] == attrs.initial);
	return nr;
}

static void check_tree(void)
{
	struct rb_node *node;
	pgoff_t end = 0;
	unsigned long nr = 0;

	for (node = rb_first(&attrs.ranges); node; node = rb_next(node), nr++) {
		struct kvm_gmem_range *r = kvm_gmem_range_of(node);

		/* Neither empty, nor overlapping, nor touching. */
		check(r->start < r->end);
		check(!nr || r->start > end);
		end = r->end;
	}
	check(nr == attrs.nr_ranges);
}

/* Each look at the record, for a range, says what the model says. */
static void check_range(unsigned long first, unsigned long limit)
{
	unsigned char want = rnd(2) ? PRIVATE : 0;
	pgoff_t start = base + first, next;
	unsigned long i = first;

	for (;;) {
		while (i < limit && model[i] == want)
			i++;
		if (!kvm_gmem_attributes_next(&attrs, want, &start, &next, base + limit))
			break;

		check(i < limit);
		check(start == base + i);
		while (i < limit && model[i] != want)
			i++;
		check(next == base + i);
		start = next;
	}
	check(i == limit);
}

static int nr_reserved(void)
{
	int i, nr = 0;

	for (i = 0; i < nr_pending; i++)
		nr += !!pending[i].reserved;
	return nr;
}

static void check_all(void)
{
	unsigned long i, nr_private = 0;

	for (i = 0; i < nr_pages; i++) {
		check(kvm_gmem_attributes_get(&attrs, base + i) == model[i]);
		nr_private += model[i] == PRIVATE;
	}
	check_range(0, nr_pages);
	check_tree();
	check(attrs.nr_ranges == model_ranges());

	if (!base) {
		check(kvm_gmem_attributes_nr_private(&attrs, nr_pages) == nr_private);
		check(kvm_gmem_attributes_nr_runs(&attrs, nr_pages) == model_runs());
	}
	check(kvm_gmem_range_cachep->nr_allocated == attrs.nr_ranges + nr_reserved());
}

/* Commit as the kernel does: as often as it takes, and with nothing to allocate. */
static void commit(struct kvm_gmem_range *reserved, pgoff_t start, pgoff_t end,
		   u64 attributes)
{
	pgoff_t next;

	kvm_gmem_range_cachep->fails = true;
	while (start < end) {
		next = kvm_gmem_attributes_commit(&attrs, &reserved, start, end,
						  attributes);
		check(next > start && next <= end);
		start = next;
	}
	kvm_gmem_range_cachep->fails = false;
	kvm_gmem_attributes_drop(reserved);
}

static bool overlaps(unsigned long first, unsigned long nr)
{
	int i;

	for (i = 0; i < nr_pending; i++) {
		if (first < pending[i].first + pending[i].nr &&
		    pending[i].first < first + nr)
			return true;
	}
	return false;
}

/* Begin a conversion, and reserve what it needs, if it needs anything. */
static void begin_one(void)
{
	unsigned long first = rnd(nr_pages), nr = 1, i;
	struct pending *p = &pending[nr_pending];
	unsigned char want = rnd(2) ? PRIVATE : 0;
	bool uniform = true;

	switch (rnd(4)) {
	case 0:
		nr = 1 + rnd(nr_pages - first);
		break;
	case 1:
		nr = 1 + rnd(min(nr_pages - first, 16ul));
		break;
	}
	if (overlaps(first, nr))
		return;

	for (i = first; i < first + nr; i++)
		uniform &= model[i] != want;

	*p = (struct pending) { .first = first, .nr = nr, .want = want };
	if (uniform) {
		kvm_gmem_range_cachep->fails = !rnd(4);
		p->reserved = kvm_gmem_attributes_reserve();
		check(!p->reserved == kvm_gmem_range_cachep->fails);
		kvm_gmem_range_cachep->fails = false;
		if (!p->reserved)
			return;
	}
	nr_pending++;
}

/* End one of those under way, whatever has become of the pages around it. */
static void end_one(bool convert)
{
	int i = rnd(nr_pending);
	struct pending p = pending[i];

	pending[i] = pending[--nr_pending];
	if (convert) {
		commit(p.reserved, base + p.first, base + p.first + p.nr, p.want);
		memset(model + p.first, p.want, p.nr);
	} else {
		kvm_gmem_attributes_drop(p.reserved);
	}
	p.first -= min(p.first, 2ul);
	check_range(p.first, min(p.first + p.nr + 4, nr_pages));
}

static void begin_file(unsigned long nr, pgoff_t where, unsigned char initial)
{
	nr_pages = nr;
	base = where;
	memset(model, initial, nr);
	kvm_gmem_attributes_init(&attrs, initial);
}

static void end_file(void)
{
	while (nr_pending)
		end_one(rnd(2));
	kvm_gmem_attributes_destroy(&attrs);
	check(!kvm_gmem_range_cachep->nr_allocated);
}

static void random_operations(unsigned long nr)
{
	static const unsigned long sizes[] = { 1, 7, 64, 500, MAX_PAGES };
	unsigned long i, file, nr_files = 100;

	for (file = 0; file < nr_files; file++) {
		unsigned long size = sizes[rnd(ARRAY_SIZE(sizes))];

		begin_file(size, rnd(2) ? 0 : rnd(2) ? 1ul << 40 : LAST_PAGE - size,
			   rnd(2) ? PRIVATE : 0);
		for (i = 0; i < nr / nr_files; i++) {
			if (nr_pending == MAX_PENDING || (nr_pending && rnd(2)))
				end_one(rnd(8));
			else
				begin_one();
			if (nr_pages <= 64 || !rnd(1000))
				check_all();
		}
		check_all();
		end_file();
	}
}

static void set(pgoff_t start, unsigned long nr, u64 attributes)
{
	commit(kvm_gmem_attributes_reserve(), start, start + nr, attributes);
}

/*
 * Pages that are far apart, so that each is a range, in order, backwards, or at
 * random, and what becomes of them: closing the file, one conversion that covers
 * all, to either state, filling the gaps, or undoing it page by page.
 */
static void many(unsigned long nr, int order, int ending)
{
	unsigned long i, j, tmp, *pages = malloc(nr * sizeof(*pages));

	for (i = 0; i < nr; i++)
		pages[i] = 64 * (order == 1 ? nr - i : i + 1) - 1;
	for (i = nr - 1; order == 2 && i; i--) {
		j = rnd(i + 1);
		tmp = pages[i];
		pages[i] = pages[j];
		pages[j] = tmp;
	}

	begin_file(0, 0, 0);
	for (i = 0; i < nr; i++)
		set(pages[i], 1, PRIVATE);
	check(attrs.nr_ranges == nr && attrs.nr_pages == nr);
	check_tree();

	switch (ending) {
	case 1:
		set(0, 64 * nr, PRIVATE);
		check(attrs.nr_ranges == 1 && attrs.nr_pages == 64 * nr);
		break;
	case 2:
		set(0, 64 * nr, 0);
		check(!attrs.nr_ranges && !attrs.nr_pages);
		break;
	case 3:
		for (i = 0; i < nr; i++)
			set(pages[i] - 63, 63, PRIVATE);
		check(attrs.nr_ranges == 1 && attrs.nr_pages == 64 * nr);
		break;
	case 4:
		for (i = 0; i < nr; i++)
			set(pages[i], 1, 0);
		check(!attrs.nr_ranges && !attrs.nr_pages);
		break;
	}
	check_tree();
	end_file();
	free(pages);
}

int main(int argc, char *argv[])
{
	unsigned long nr = 1000000;
	int opt, order, ending;

	seed = time(NULL);
	while ((opt = getopt(argc, argv, "s:n:")) != -1) {
		switch (opt) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			nr = strtoul(optarg, NULL, 0);
			break;
		default:
			return 2;
		}
	}
	state = seed;
	printf("seed %llu\n", seed);
	setbuf(stdout, NULL);
	check(!kvm_gmem_attributes_cache_init());

	random_operations(nr);
	printf("ok %lu random operations\n", nr);

	for (order = 0; order < 3; order++) {
		for (ending = 0; ending < 5; ending++)
			many(20000, order, ending);
	}
	printf("ok 20000 ranges, in any order, and back\n");
	kvm_gmem_attributes_cache_exit();
	return 0;
}
