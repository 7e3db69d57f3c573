// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of a guest_memfd file are private, and which are shared.
 *
 * This file knows about trees and page indices, but nothing about inodes,
 * folios or VMs.
 */
#include <linux/align.h>
#include <linux/bitops.h>
#include <linux/bug.h>
#include <linux/gfp.h>
#include <linux/kvm.h>
#include <linux/maple_tree.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "guest_memfd_attributes.h"

/*
 * MT_FLAGS_ALLOC_RANGE is not for its gaps: an RCU-safe tree without it goes
 * wrong in mt_free_walk() when it is destroyed with four or more levels, which
 * takes but a few thousand scattered conversions.
 */
#define KVM_GMEM_ATTRIBUTES_MT_FLAGS	(MT_FLAGS_ALLOC_RANGE |		\
					 MT_FLAGS_USE_RCU |		\
					 MT_FLAGS_LOCK_EXTERN |		\
					 MT_FLAGS_ACCOUNT)

/*
 * An entry has one bit for each page of a block, i.e. of so many pages that are
 * aligned to their number.  The bit is set if the page's attributes are not the
 * initial ones.  Pages of equal attributes share one entry, however many blocks
 * they span, with all bits set, or no entry at all.  Any other entry stands for
 * pages of a single block, all of them, and there is one if, and only if, two or
 * more pages of the block differ from the previous page of it, so that converting
 * every other page, one by one, takes one entry per block instead of one per page.
 * There are never more entries than there are runs, and what they are depends on
 * the pages' attributes, not on what has led there, if there is enough memory.
 */
#define KVM_GMEM_BLOCK_PAGES	(BITS_PER_LONG / 2)
#define KVM_GMEM_BLOCK_MASK	GENMASK(KVM_GMEM_BLOCK_PAGES - 1, 0)

static unsigned long kvm_gmem_entry_to_bits(void *entry)
{
	return entry ? xa_to_value(entry) : 0;
}

static void *kvm_gmem_bits_to_entry(unsigned long bits)
{
	return bits ? xa_mk_value(bits) : NULL;
}

static bool kvm_gmem_is_mixed(unsigned long bits)
{
	return bits && bits != KVM_GMEM_BLOCK_MASK;
}

void kvm_gmem_attributes_init(struct kvm_gmem_attributes *attrs, u64 initial)
{
	mt_init_flags(&attrs->tree, KVM_GMEM_ATTRIBUTES_MT_FLAGS);
	attrs->initial = initial;
}

/* The lock must be held for write. */
void kvm_gmem_attributes_destroy(struct kvm_gmem_attributes *attrs)
{
	__mt_destroy(&attrs->tree);
}

/*
 * Without the lock, the result is stale as soon as it is returned.  Callers need
 * some other means to detect, or prevent, a concurrent change.
 */
u64 kvm_gmem_attributes_get(struct kvm_gmem_attributes *attrs, pgoff_t index)
{
	void *entry = mtree_load(&attrs->tree, index);
	unsigned long bit = BIT(index % KVM_GMEM_BLOCK_PAGES);

	if (kvm_gmem_entry_to_bits(entry) & bit)
		return attrs->initial ^ KVM_MEMORY_ATTRIBUTE_PRIVATE;

	return attrs->initial;
}

/*
 * Return whether or not the page at @index is changed, i.e. doesn't have the
 * initial attributes, and in [@first, @last] the pages around it that share its
 * entry and its attributes.
 */
static bool kvm_gmem_attributes_walk(struct ma_state *mas, pgoff_t index,
				     pgoff_t *first, pgoff_t *last)
{
	unsigned long bits, others, nr = index % KVM_GMEM_BLOCK_PAGES;
	pgoff_t block = index - nr;
	bool changed;

	mas_set(mas, index);
	bits = kvm_gmem_entry_to_bits(mas_walk(mas));
	changed = bits & BIT(nr);

	*first = mas->index;
	*last = mas->last;

	others = changed ? bits ^ KVM_GMEM_BLOCK_MASK : bits;
	if (others & (BIT(nr) - 1))
		*first = max(*first, block + fls_long(others & (BIT(nr) - 1)));
	if (others >> nr)
		*last = min(*last, block + __ffs(others >> nr << nr) - 1);

	return changed;
}

/*
 * As above, and in [@first, @last] pages around @index with the same attributes.
 * The lock must be held.
 */
u64 kvm_gmem_attributes_get_run(struct kvm_gmem_attributes *attrs, pgoff_t index,
				pgoff_t *first, pgoff_t *last)
{
	MA_STATE(mas, &attrs->tree, index, index);

	if (kvm_gmem_attributes_walk(&mas, index, first, last))
		return attrs->initial ^ KVM_MEMORY_ATTRIBUTE_PRIVATE;

	return attrs->initial;
}

static bool kvm_gmem_attributes_to_changed(struct kvm_gmem_attributes *attrs,
					   u64 attributes)
{
	return attributes != attrs->initial;
}

/*
 * Find the first run of pages in [@*start, @limit) whose attributes are not
 * @attributes, and return it in [@*start, @*end).
 */
bool kvm_gmem_attributes_next(struct kvm_gmem_attributes *attrs, u64 attributes,
			      pgoff_t *start, pgoff_t *end, pgoff_t limit)
{
	MA_STATE(mas, &attrs->tree, *start, *start);
	bool changed = kvm_gmem_attributes_to_changed(attrs, attributes);
	pgoff_t index, first, last;
	bool found = false;

	for (index = *start; index < limit; index = last + 1) {
		bool differs;

		differs = kvm_gmem_attributes_walk(&mas, index, &first, &last) != changed;
		if (found && !differs)
			break;

		if (differs && !found)
			*start = index;

		found = differs;
		last = min(last, limit - 1);
	}

	*end = index;
	return found;
}

bool kvm_gmem_attributes_range_has(struct kvm_gmem_attributes *attrs,
				   pgoff_t start, pgoff_t end, u64 attributes)
{
	pgoff_t unused;

	return !kvm_gmem_attributes_next(attrs, attributes, &start, &unused, end);
}

/*
 * How many of the first @nr_pages pages have @attributes?  In @nr_runs, return how
 * many runs of pages with equal attributes there are, whatever those are.
 */
unsigned long kvm_gmem_attributes_count(struct kvm_gmem_attributes *attrs,
					u64 attributes, unsigned long nr_pages,
					unsigned long *nr_runs)
{
	MA_STATE(mas, &attrs->tree, 0, 0);
	bool wanted = kvm_gmem_attributes_to_changed(attrs, attributes);
	pgoff_t index, first, last;
	unsigned long nr = 0;
	bool previous = false;

	*nr_runs = 0;

	for (index = 0; index < nr_pages; index = last + 1) {
		bool changed = kvm_gmem_attributes_walk(&mas, index, &first, &last);

		last = min(last, nr_pages - 1);
		if (changed == wanted)
			nr += last + 1 - index;

		if (!index || changed != previous)
			(*nr_runs)++;

		previous = changed;
		cond_resched();
	}

	return nr;
}

/*
 * With an entry per run, the block would take at least as many entries as with an
 * entry of its own, which can come with a boundary on either side that is otherwise
 * not there.
 */
static bool kvm_gmem_has_many_runs(unsigned long bits)
{
	return hweight_long((bits ^ bits >> 1) & (KVM_GMEM_BLOCK_MASK >> 1)) >= 2;
}

/*
 * If the range that is about to be stored lies in a block, and makes many runs of
 * it, or a single one, store the block as a whole.
 */
static void kvm_gmem_attributes_extend_to_block(struct kvm_gmem_attributes_change *change)
{
	struct ma_state *mas = &change->mas;
	pgoff_t start = mas->index, end = mas->last, index;
	pgoff_t block = round_down(start, KVM_GMEM_BLOCK_PAGES);
	pgoff_t block_end = block + KVM_GMEM_BLOCK_PAGES - 1;
	unsigned long bits = 0, mask;

	if (end > block_end)
		return;

	for (index = block; ; index = mas->last + 1) {
		mas_set(mas, index);
		mask = kvm_gmem_entry_to_bits(mas_walk(mas));
		bits |= mask & GENMASK(min(mas->last, block_end) - block, index - block);

		if (mas->last >= block_end)
			break;
	}

	mask = GENMASK(end - block, start - block);
	bits = change->entry ? bits | mask : bits & ~mask;

	if (kvm_gmem_is_mixed(bits) && !kvm_gmem_has_many_runs(bits)) {
		mas_set_range(mas, start, end);
		return;
	}

	mas_set_range(mas, block, block_end);
	change->entry = kvm_gmem_bits_to_entry(bits);
}

/*
 * Extend the range that is about to be stored by the pages on either side of it
 * that are going to be equal, so that equal neighbours share one entry.  A whole
 * block's entry next to it, which is what has other pages, too, stays as it is.
 */
static void kvm_gmem_attributes_merge(struct kvm_gmem_attributes_change *change)
{
	struct ma_state *mas = &change->mas;
	pgoff_t start = mas->index, end = mas->last, first, last;
	bool changed = change->entry;

	while (start && kvm_gmem_attributes_walk(mas, start - 1, &first, &last) == changed) {
		if (first != mas->index && IS_ALIGNED(start, KVM_GMEM_BLOCK_PAGES))
			break;
		start = first;
	}

	while (end != ULONG_MAX &&
	       kvm_gmem_attributes_walk(mas, end + 1, &first, &last) == changed) {
		if (last != mas->last && IS_ALIGNED(end + 1, KVM_GMEM_BLOCK_PAGES))
			break;
		end = last;
	}

	mas_set_range(mas, start, end);
}

/*
 * If it takes more than one node, then nodes are charged to the memory cgroup when
 * they are used, which doesn't fail.  Do so now if they will not fit in there.
 */
static bool kvm_gmem_attributes_may_charge(struct kvm_gmem_attributes_change *change)
{
	void *nodes;

	if (!change->mas.sheaf)
		return true;

	nodes = kmalloc_array(kmem_cache_sheaf_size(change->mas.sheaf),
			      sizeof(struct maple_node), GFP_KERNEL_ACCOUNT);
	if (!nodes)
		return false;

	kfree(nodes);
	return true;
}

/* With nothing left to record, there is no need for a node, only for an empty tree. */
static bool kvm_gmem_change_empties_tree(struct kvm_gmem_attributes_change *change)
{
	return !change->entry && !change->mas.index && change->mas.last == ULONG_MAX;
}

int kvm_gmem_attributes_reserve(struct kvm_gmem_attributes *attrs,
				struct kvm_gmem_attributes_change *change,
				pgoff_t start, pgoff_t end, u64 attributes)
{
	MA_STATE(mas, &attrs->tree, start, end - 1);
	bool changed = kvm_gmem_attributes_to_changed(attrs, attributes);
	int r;

	change->mas = mas;
	change->entry = kvm_gmem_bits_to_entry(changed ? KVM_GMEM_BLOCK_MASK : 0);

	kvm_gmem_attributes_extend_to_block(change);
	if (!kvm_gmem_is_mixed(kvm_gmem_entry_to_bits(change->entry)))
		kvm_gmem_attributes_merge(change);

	if (kvm_gmem_change_empties_tree(change))
		return 0;

	r = mas_preallocate(&change->mas, change->entry, GFP_KERNEL);
	if (!r && !kvm_gmem_attributes_may_charge(change)) {
		mas_destroy(&change->mas);
		r = -ENOMEM;
	}

	return r;
}

/*
 * After a change that ends next to the page at @index, store the page's block as a
 * whole if there are now many runs in it.  Or else, if that page's entry is what
 * remains of a block's, give its run an entry.  Nothing changes for the pages.
 */
static void kvm_gmem_attributes_tidy(struct maple_tree *tree, pgoff_t index)
{
	MA_STATE(mas, tree, index, index);
	struct kvm_gmem_attributes_change change = { .mas = mas };
	unsigned long bits = kvm_gmem_entry_to_bits(mas_walk(&mas));
	pgoff_t block = round_down(index, KVM_GMEM_BLOCK_PAGES);
	bool changed = bits & BIT(index % KVM_GMEM_BLOCK_PAGES);

	/* What's left of the block is a single run, as it mostly is. */
	if (!kvm_gmem_is_mixed(bits) &&
	    (mas.index <= block || mas.last - block >= KVM_GMEM_BLOCK_PAGES - 1))
		return;

	change.entry = kvm_gmem_bits_to_entry(changed ? KVM_GMEM_BLOCK_MASK : 0);
	kvm_gmem_attributes_extend_to_block(&change);

	if (!kvm_gmem_is_mixed(kvm_gmem_entry_to_bits(change.entry))) {
		if (!kvm_gmem_is_mixed(bits))
			return;

		kvm_gmem_attributes_merge(&change);
	} else if (mas.index == change.mas.index && mas.last == change.mas.last) {
		return;
	}

	if (!mas_preallocate(&change.mas, change.entry, GFP_NOWAIT))
		mas_store_prealloc(&change.mas, change.entry);
}

void kvm_gmem_attributes_commit(struct kvm_gmem_attributes_change *change)
{
	struct maple_tree *tree = change->mas.tree;
	pgoff_t start = change->mas.index, end = change->mas.last;

	if (kvm_gmem_change_empties_tree(change)) {
		__mt_destroy(tree);
		return;
	}

	mas_store_prealloc(&change->mas, change->entry);

	/* A whole block leaves nothing of others. */
	if (kvm_gmem_is_mixed(kvm_gmem_entry_to_bits(change->entry)))
		return;

	/* If there's no memory for that, the record is larger than it need be. */
	if (!IS_ALIGNED(start, KVM_GMEM_BLOCK_PAGES))
		kvm_gmem_attributes_tidy(tree, start - 1);
	if (!IS_ALIGNED(end + 1, KVM_GMEM_BLOCK_PAGES))
		kvm_gmem_attributes_tidy(tree, end + 1);
}

void kvm_gmem_attributes_drop(struct kvm_gmem_attributes_change *change)
{
	mas_destroy(&change->mas);
}
