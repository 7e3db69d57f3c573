// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of a guest_memfd file are private, and which are shared: a tree of
 * the ranges of pages that don't have the initial attributes.  Ranges neither
 * overlap nor touch.
 */
#include <linux/errno.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "guest_memfd_attributes.h"

struct kvm_gmem_range {
	struct rb_node node;
	pgoff_t start;
	pgoff_t end;
};

static struct kmem_cache *kvm_gmem_range_cachep;

/* The guest has a say in how many ranges there are: charge them to the VMM. */
int kvm_gmem_attributes_cache_init(void)
{
	kvm_gmem_range_cachep = KMEM_CACHE(kvm_gmem_range, SLAB_ACCOUNT);

	return kvm_gmem_range_cachep ? 0 : -ENOMEM;
}

void kvm_gmem_attributes_cache_exit(void)
{
	kmem_cache_destroy(kvm_gmem_range_cachep);
}

void kvm_gmem_attributes_init(struct kvm_gmem_attributes *attrs, u64 initial)
{
	*attrs = (struct kvm_gmem_attributes) { .initial = initial };
}

void kvm_gmem_attributes_destroy(struct kvm_gmem_attributes *attrs)
{
	struct kvm_gmem_range *r, *next;

	rbtree_postorder_for_each_entry_safe(r, next, &attrs->ranges, node) {
		kmem_cache_free(kvm_gmem_range_cachep, r);
		cond_resched();
	}
}

static struct kvm_gmem_range *kvm_gmem_range_of(struct rb_node *node)
{
	return rb_entry_safe(node, struct kvm_gmem_range, node);
}

/* The first range that ends after @index. */
static struct kvm_gmem_range *kvm_gmem_range_find(struct kvm_gmem_attributes *attrs,
						  pgoff_t index)
{
	struct rb_node *node = attrs->ranges.rb_node;
	struct kvm_gmem_range *found = NULL;

	while (node) {
		struct kvm_gmem_range *r = kvm_gmem_range_of(node);

		if (r->end > index) {
			found = r;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}

	return found;
}

static void kvm_gmem_range_insert(struct kvm_gmem_attributes *attrs,
				  struct kvm_gmem_range **reserved,
				  pgoff_t start, pgoff_t end)
{
	struct rb_node **link = &attrs->ranges.rb_node, *parent = NULL;
	struct kvm_gmem_range *r = *reserved;

	*reserved = NULL;
	r->start = start;
	r->end = end;

	while (*link) {
		parent = *link;
		link = start < kvm_gmem_range_of(parent)->start ?
		       &parent->rb_left : &parent->rb_right;
	}

	rb_link_node(&r->node, parent, link);
	rb_insert_color(&r->node, &attrs->ranges);
	attrs->nr_ranges++;
}

static void kvm_gmem_range_erase(struct kvm_gmem_attributes *attrs,
				 struct kvm_gmem_range *r)
{
	rb_erase(&r->node, &attrs->ranges);
	kmem_cache_free(kvm_gmem_range_cachep, r);
	attrs->nr_ranges--;
}

u64 kvm_gmem_attributes_get(struct kvm_gmem_attributes *attrs, pgoff_t index)
{
	struct kvm_gmem_range *r = kvm_gmem_range_find(attrs, index);

	if (r && r->start <= index)
		return attrs->initial ^ KVM_MEMORY_ATTRIBUTE_PRIVATE;

	return attrs->initial;
}

/*
 * Find the first pages in [@*start, @end) that don't have @attributes, and return
 * them in [@*start, @*next).
 */
bool kvm_gmem_attributes_next(struct kvm_gmem_attributes *attrs, u64 attributes,
			      pgoff_t *start, pgoff_t *next, pgoff_t end)
{
	struct kvm_gmem_range *r = kvm_gmem_range_find(attrs, *start);

	if (attributes == attrs->initial) {
		*start = r ? max(*start, r->start) : end;
		*next = r ? min(r->end, end) : end;
	} else {
		if (r && r->start <= *start) {
			*start = r->end;
			r = kvm_gmem_range_of(rb_next(&r->node));
		}
		*next = r ? min(r->start, end) : end;
	}

	return *start < end;
}

unsigned long kvm_gmem_attributes_nr_private(struct kvm_gmem_attributes *attrs,
					     unsigned long nr_pages)
{
	return attrs->initial ? nr_pages - attrs->nr_pages : attrs->nr_pages;
}

/* How many runs of pages with equal attributes do the first @nr_pages have? */
unsigned long kvm_gmem_attributes_nr_runs(struct kvm_gmem_attributes *attrs,
					  unsigned long nr_pages)
{
	struct kvm_gmem_range *first, *last;

	first = kvm_gmem_range_of(rb_first(&attrs->ranges));
	last = kvm_gmem_range_of(rb_last(&attrs->ranges));
	if (!first)
		return 1;

	return 2 * attrs->nr_ranges + 1 - !first->start - (last->end == nr_pages);
}

/*
 * Reserve what it takes to change the attributes of pages that have equal ones:
 * a single range, whatever is committed for other pages meanwhile.  Where they
 * differ, there is a range to be had already, and nothing to reserve.
 */
struct kvm_gmem_range *kvm_gmem_attributes_reserve(void)
{
	return kmem_cache_alloc(kvm_gmem_range_cachep, GFP_KERNEL);
}

void kvm_gmem_attributes_drop(struct kvm_gmem_range *reserved)
{
	if (reserved)
		kmem_cache_free(kvm_gmem_range_cachep, reserved);
}

/* How many ranges to remove at a time. */
#define KVM_GMEM_COMMIT_BATCH	256

/* Have one range for [start, end), and for the ranges that it touches. */
static pgoff_t kvm_gmem_range_add(struct kvm_gmem_attributes *attrs,
				  struct kvm_gmem_range **reserved,
				  pgoff_t start, pgoff_t end)
{
	struct kvm_gmem_range *r, *next;
	int nr;

	r = kvm_gmem_range_find(attrs, start ? start - 1 : 0);
	if (!r || r->start > end) {
		kvm_gmem_range_insert(attrs, reserved, start, end);
		attrs->nr_pages += end - start;
		return end;
	}

	attrs->nr_pages -= r->end - r->start;
	r->start = min(r->start, start);

	for (nr = 0; ; nr++) {
		next = kvm_gmem_range_of(rb_next(&r->node));
		if (!next || next->start > end)
			break;

		/* Go on there the next time. */
		if (nr >= KVM_GMEM_COMMIT_BATCH && next->start < end) {
			end = next->start;
			break;
		}

		attrs->nr_pages -= next->end - next->start;
		r->end = next->end;
		kvm_gmem_range_erase(attrs, next);
	}

	r->end = max(r->end, end);
	attrs->nr_pages += r->end - r->start;

	return end;
}

/* Have no range for [start, end). */
static pgoff_t kvm_gmem_range_remove(struct kvm_gmem_attributes *attrs,
				     struct kvm_gmem_range **reserved,
				     pgoff_t start, pgoff_t end)
{
	struct kvm_gmem_range *r, *next;
	int nr;

	r = kvm_gmem_range_find(attrs, start);
	for (nr = 0; r && r->start < end; nr++, r = next) {
		next = kvm_gmem_range_of(rb_next(&r->node));
		if (nr == KVM_GMEM_COMMIT_BATCH)
			return r->start;

		attrs->nr_pages -= min(r->end, end) - max(r->start, start);

		if (r->start < start && r->end > end) {
			kvm_gmem_range_insert(attrs, reserved, end, r->end);
			r->end = start;
		} else if (r->start < start) {
			r->end = start;
		} else if (r->end > end) {
			r->start = end;
		} else {
			kvm_gmem_range_erase(attrs, r);
		}
	}

	return end;
}

/*
 * Change the attributes of the pages in [start, end), with what was @reserved for
 * it, if anything.  If there are many ranges to remove, then stop early: return the first page
 * whose attributes may have yet to be changed, or @end.
 */
pgoff_t kvm_gmem_attributes_commit(struct kvm_gmem_attributes *attrs,
				   struct kvm_gmem_range **reserved,
				   pgoff_t start, pgoff_t end, u64 attributes)
{
	if (attributes == attrs->initial)
		return kvm_gmem_range_remove(attrs, reserved, start, end);

	return kvm_gmem_range_add(attrs, reserved, start, end);
}
