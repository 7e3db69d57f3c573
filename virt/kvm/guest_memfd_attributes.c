// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of a guest_memfd file are private, and which are shared.
 *
 * This file knows about trees and page indices, but nothing about inodes,
 * folios or VMs.
 */
#include <linux/bug.h>
#include <linux/gfp.h>
#include <linux/maple_tree.h>
#include <linux/minmax.h>
#include <linux/sched.h>
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

static void *kvm_gmem_attributes_to_entry(struct kvm_gmem_attributes *attrs,
					  u64 attributes)
{
	return attributes == attrs->initial ? NULL : xa_mk_value(attributes);
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

	return entry ? xa_to_value(entry) : attrs->initial;
}

/*
 * Find the first run of pages in [@*start, @limit) whose attributes are not
 * @attributes, and return it in [@*start, @*end).
 */
bool kvm_gmem_attributes_next(struct kvm_gmem_attributes *attrs, u64 attributes,
			      pgoff_t *start, pgoff_t *end, pgoff_t limit)
{
	MA_STATE(mas, &attrs->tree, *start, *start);
	void *entry = kvm_gmem_attributes_to_entry(attrs, attributes);

	while (*start < limit) {
		bool found = mas_walk(&mas) != entry;

		*end = min(mas.last, limit - 1) + 1;
		if (found)
			return true;

		*start = *end;
		mas_set(&mas, *start);
	}

	return false;
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
	void *entry = kvm_gmem_attributes_to_entry(attrs, attributes);
	unsigned long nr = 0;
	pgoff_t start, end;

	*nr_runs = 0;

	for (start = 0; start < nr_pages; start = end) {
		bool found = mas_walk(&mas) == entry;

		end = min(mas.last, nr_pages - 1) + 1;
		if (found)
			nr += end - start;

		(*nr_runs)++;
		mas_set(&mas, end);
		cond_resched();
	}

	return nr;
}

/*
 * Extend the range that is about to be stored by the runs on either side of it
 * if they have the same entry, so that equal neighbours are always one entry.
 * The tree does that by itself for NULL.
 */
static void kvm_gmem_attributes_merge(struct ma_state *mas, void *entry)
{
	unsigned long first = mas->index, last = mas->last;

	if (first) {
		mas_set(mas, first - 1);
		if (mas_walk(mas) == entry)
			first = mas->index;
	}

	if (last != ULONG_MAX) {
		mas_set(mas, last + 1);
		if (mas_walk(mas) == entry)
			last = mas->last;
	}

	mas_set_range(mas, first, last);
}

int kvm_gmem_attributes_reserve(struct kvm_gmem_attributes *attrs,
				struct kvm_gmem_attributes_change *change,
				pgoff_t start, pgoff_t end, u64 attributes)
{
	MA_STATE(mas, &attrs->tree, start, end - 1);

	change->mas = mas;
	change->entry = kvm_gmem_attributes_to_entry(attrs, attributes);

	if (change->entry)
		kvm_gmem_attributes_merge(&change->mas, change->entry);

	return mas_preallocate(&change->mas, change->entry, GFP_KERNEL);
}

void kvm_gmem_attributes_commit(struct kvm_gmem_attributes_change *change)
{
	mas_store_prealloc(&change->mas, change->entry);
}

void kvm_gmem_attributes_drop(struct kvm_gmem_attributes_change *change)
{
	mas_destroy(&change->mas);
}
