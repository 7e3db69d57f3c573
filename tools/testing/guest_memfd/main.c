// SPDX-License-Identifier: GPL-2.0
/*
 * The record of which pages of a guest_memfd are private, in user space: the
 * kernel's own source, compared with an array of bytes that says the same.
 *
 *	guest_memfd [-s SEED] [-n OPERATIONS]
 */
#include "maple-shared.h"
#include "test.h"
#include <getopt.h>
#include <limits.h>
#include <time.h>

#include "../../../lib/maple_tree.c"

#define pgoff_t		unsigned long

/* What the record allocates with; without reclaim, allocations fail on demand. */
static gfp_t test_gfp = GFP_KERNEL;
#undef GFP_KERNEL
#define GFP_KERNEL	test_gfp
#include "../../../virt/kvm/guest_memfd_attributes.c"
#undef GFP_KERNEL
#define GFP_KERNEL	(__GFP_RECLAIM | __GFP_IO | __GFP_FS)

#define PRIVATE		8ull
#define MAX_PAGES	4096

/* The last page of the largest file possible, and then some. */
#define LAST_PAGE	((pgoff_t)(LLONG_MAX >> 12))

static unsigned long long seed;

#define check(cond)							\
do {									\
	if (!(cond)) {							\
		printf("not ok: %s, line %d, -s %llu\n", #cond,		\
		       __LINE__, seed);					\
		abort();						\
	}								\
} while (0)

void maple_rcu_cb(struct rcu_head *head)
{
	struct maple_node *node = container_of(head, struct maple_node, rcu);

	kmem_cache_free(maple_node_cache, node);
}

static unsigned long long state;

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
static bool plenty;		/* of memory, even for what isn't needed */

/* Entries, and gaps between them, both of which take a slot in a node. */
static unsigned long nr_slots(void)
{
	MA_STATE(mas, &attrs.tree, 0, 0);
	unsigned long nr = 0, last;

	do {
		mas_walk(&mas);
		last = mas.last;
		mas_set(&mas, last + 1);
		nr++;
	} while (last != ULONG_MAX);

	return nr;
}

/* Runs of pages with @attributes, in the file. */
static unsigned long model_runs(unsigned char attributes)
{
	unsigned long i, nr = 0;

	for (i = 0; i < nr_pages; i++)
		nr += model[i] == attributes && (!i || model[i - 1] != attributes);
	return nr;
}

/* Does the page differ from the previous one?  What's not in the file never changes. */
static bool is_boundary(pgoff_t index)
{
	unsigned long i = index - base;

	return (i < nr_pages ? model[i] : attrs.initial) !=
	       (i - 1 < nr_pages ? model[i - 1] : attrs.initial);
}

static bool is_mixed(pgoff_t block)
{
	unsigned long i, nr = 0;

	for (i = 1; i < KVM_GMEM_BLOCK_PAGES; i++)
		nr += is_boundary(block + i);
	return nr >= 2;
}

/*
 * How many slots it takes at least: one for each run, but only one for a block that
 * has two boundaries or more in it.
 */
static unsigned long model_slots(void)
{
	pgoff_t block, end = base + nr_pages;
	unsigned long i, nr = 1;
	bool mixed, previous = false;

	for (block = round_down(base, KVM_GMEM_BLOCK_PAGES); block <= end;
	     block += KVM_GMEM_BLOCK_PAGES) {
		mixed = is_mixed(block);
		nr += block && (mixed || previous || is_boundary(block));
		for (i = 1; i < KVM_GMEM_BLOCK_PAGES && !mixed; i++)
			nr += is_boundary(block + i);
		previous = mixed;
	}
	return nr + previous;
}

static unsigned long model_end(unsigned long i, unsigned long limit)
{
	unsigned long end = i;

	while (end < limit && model[end] == model[i])
		end++;
	return end;
}

/* Each look at the record, for a range, says what the model says. */
static void check_range(unsigned long first, unsigned long limit)
{
	unsigned char want = rnd(2) ? PRIVATE : 0;
	pgoff_t start = base + first, end;
	unsigned long i = first;

	for (;;) {
		while (i < limit && model[i] == want)
			i++;

		check(kvm_gmem_attributes_range_has(&attrs, start, base + limit, want) ==
		      (i == limit));
		if (!kvm_gmem_attributes_next(&attrs, want, &start, &end, base + limit))
			break;

		check(i < limit);
		check(start == base + i);
		i = model_end(i, limit);
		check(end == base + i);
		start = end;
	}
	check(i == limit);
}

static void check_all(void)
{
	unsigned long i, nr_runs, counted, nr, nr_private = 0;

	for (i = 0; i < nr_pages; i++) {
		check(kvm_gmem_attributes_get(&attrs, base + i) == model[i]);
		nr_private += model[i] == PRIVATE;
	}
	check_range(0, nr_pages);
	mt_validate(&attrs.tree);

	nr_runs = model_runs(PRIVATE) + model_runs(0);

	check(!plenty || nr_slots() == model_slots());

	if (!base) {
		nr = kvm_gmem_attributes_count(&attrs, PRIVATE, nr_pages, &counted);
		check(nr == nr_private);
		check(counted == nr_runs);
	}
}

/* Does the change leave nothing to record? */
static bool empties(unsigned long first, unsigned long nr, unsigned char want)
{
	unsigned long i;

	if (want != attrs.initial)
		return false;

	for (i = 0; i < nr_pages; i++) {
		if ((i < first || i >= first + nr) && model[i] != attrs.initial)
			return false;
	}
	return true;
}

/* Convert, or not: memory may run out, or the caller may change its mind. */
static void one_operation(void)
{
	unsigned long first = rnd(nr_pages), nr = 1;
	struct kvm_gmem_attributes_change change;
	unsigned char want = rnd(2) ? PRIVATE : 0;
	bool scarce = !rnd(3);
	int r;

	switch (rnd(4)) {
	case 0:
		nr = 1 + rnd(nr_pages - first);
		break;
	case 1:
		nr = 1 + rnd(min(nr_pages - first, 16ul));
		break;
	}

	if (scarce) {
		test_gfp = GFP_NOWAIT;
		kmem_cache_set_non_kernel(maple_node_cache, rnd(12));
	}

	r = kvm_gmem_attributes_reserve(&attrs, &change, base + first,
					base + first + nr, want);
	check(!r || (scarce && r == -ENOMEM && !empties(first, nr, want)));

	/* From here on nothing is needed, but the record stays small if there is. */
	test_gfp = GFP_NOWAIT;
	kmem_cache_set_non_kernel(maple_node_cache, plenty ? 1000 : rnd(4));

	if (!r && rnd(8)) {
		kvm_gmem_attributes_commit(&change);
		memset(model + first, want, nr);
	} else if (!r) {
		kvm_gmem_attributes_drop(&change);
	}
	test_gfp = GFP_KERNEL;

	first -= min(first, 2ul);
	check_range(first, min(first + nr + 4, nr_pages));
}

static void begin(unsigned long nr, pgoff_t where, unsigned char initial)
{
	nr_pages = nr;
	base = where;
	memset(model, initial, nr);
	plenty = true;
	kvm_gmem_attributes_init(&attrs, initial);
}

/*
 * Nothing is left.  Nodes come from a kmem_cache, but some go by way of kfree(),
 * which counts for itself.  There are no other users of kfree().
 */
static void end(void)
{
	kvm_gmem_attributes_destroy(&attrs);
	rcu_barrier();
	check(kmem_cache_nr_allocated(maple_node_cache) + kmalloc_nr_allocated == 0);
}

static void random_operations(unsigned long nr)
{
	static const unsigned long sizes[] = { 1, 7, 64, 500, MAX_PAGES };
	unsigned long i, file, nr_files = 100;

	for (file = 0; file < nr_files; file++) {
		unsigned long size = sizes[rnd(ARRAY_SIZE(sizes))];

		begin(size, rnd(2) ? 0 : rnd(2) ? 1ul << 40 : LAST_PAGE - size,
		      rnd(2) ? PRIVATE : 0);
		plenty = rnd(2);
		for (i = 0; i < nr / nr_files; i++) {
			one_operation();
			if (nr_pages <= 64 || !rnd(1000))
				check_all();
		}
		check_all();
		end();
	}
}

static void set(unsigned long first, unsigned long nr, u64 attributes)
{
	struct kvm_gmem_attributes_change change;

	check(!kvm_gmem_attributes_reserve(&attrs, &change, first, first + nr,
					   attributes));
	kvm_gmem_attributes_commit(&change);
}

/*
 * Pages at a @distance, i.e. every other one, which makes for few entries, or so far
 * apart that each is one, which makes for a tree of many levels.  In order, backwards,
 * or at random, and what becomes of it: closing the file, one conversion that covers
 * all, filling the gaps, or undoing it page by page.
 */
static void tall(unsigned long nr, unsigned long distance, int order, int ending)
{
	unsigned long i, j, tmp, *pages = malloc(nr * sizeof(*pages));

	for (i = 0; i < nr; i++)
		pages[i] = distance * (order == 1 ? nr - i : i + 1) - 1;
	for (i = nr - 1; order == 2 && i; i--) {
		j = rnd(i + 1);
		tmp = pages[i];
		pages[i] = pages[j];
		pages[j] = tmp;
	}

	begin(0, 0, 0);
	for (i = 0; i < nr; i++)
		set(pages[i], 1, PRIVATE);
	if (distance == 2) {
		check(nr_slots() <= nr / 16 + 2);
	} else {
		check(nr_slots() == 2 * nr + 1);
		check(mt_height(&attrs.tree) >= 4);
	}
	mt_validate(&attrs.tree);

	switch (ending) {
	case 1:
		set(0, distance * nr, PRIVATE);
		check(nr_slots() == 2);
		break;
	case 2:
		for (i = 0; i < nr; i++)
			set(pages[i] + 1 - distance, distance - 1, PRIVATE);
		check(nr_slots() == 2);
		break;
	case 3:
		for (i = 0; i < nr; i++)
			set(pages[i], 1, 0);
		check(nr_slots() == 1);
		break;
	}
	mt_validate(&attrs.tree);
	end();
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
	rcu_register_thread();
	maple_tree_init();

	random_operations(nr);
	printf("ok %lu random operations\n", nr);

	for (order = 0; order < 3; order++) {
		for (ending = 0; ending < 4; ending++) {
			tall(20000, 2, order, ending);
			tall(20000, 64, order, ending);
		}
	}
	printf("ok 20000 ranges, in any order, and back\n");
	return 0;
}
