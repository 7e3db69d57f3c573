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
	union {
		struct rb_node node;
		struct kvm_gmem_range *next_reserved;
	};
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

static int kvm_gmem_range_cmp(const void *index, const struct rb_node *node)
{
	return kvm_gmem_range_of((void *)node)->end <= *(pgoff_t *)index;
}

static bool kvm_gmem_range_less(struct rb_node *a, const struct rb_node *b)
{
	return kvm_gmem_range_of(a)->start < kvm_gmem_range_of((void *)b)->start;
}

/* The first range that ends after @index. */
static struct kvm_gmem_range *kvm_gmem_range_find(struct kvm_gmem_attributes *attrs,
						  pgoff_t index)
{
	return kvm_gmem_range_of(rb_find_first(&index, &attrs->ranges,
					       kvm_gmem_range_cmp));
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
	struct kvm_gmem_range *r;

	r = kmem_cache_alloc(kvm_gmem_range_cachep, GFP_KERNEL);
	if (r)
		r->next_reserved = NULL;

	return r;
}

void kvm_gmem_attributes_drop(struct kvm_gmem_range *reserved)
{
	struct kvm_gmem_range *r;

	while ((r = reserved)) {
		reserved = r->next_reserved;
		kmem_cache_free(kvm_gmem_range_cachep, r);
		cond_resched();
	}
}

static void kvm_gmem_range_insert(struct kvm_gmem_attributes *attrs,
				  struct kvm_gmem_range **reserved,
				  pgoff_t start, pgoff_t end)
{
	struct kvm_gmem_range *r = *reserved;

	if (start == end)
		return;

	*reserved = r->next_reserved;
	r->start = start;
	r->end = end;
	rb_add(&r->node, &attrs->ranges, kvm_gmem_range_less);
	attrs->nr_ranges++;
	attrs->nr_pages += end - start;
}

static void kvm_gmem_range_remove(struct kvm_gmem_attributes *attrs,
				  struct kvm_gmem_range **reserved,
				  struct kvm_gmem_range *r)
{
	rb_erase(&r->node, &attrs->ranges);
	attrs->nr_ranges--;
	attrs->nr_pages -= r->end - r->start;
	r->next_reserved = *reserved;
	*reserved = r;
}

/* How many ranges to remove at a time. */
#define KVM_GMEM_COMMIT_BATCH	256

/*
 * Change the attributes of the pages in [start, end): remove the ranges they are
 * in, or are to be part of, and insert what remains of these, or becomes of them.
 * Leave what is no longer needed in @reserved, for the caller to drop.
 *
 * If there are many ranges to remove, stop early: return the first page whose
 * attributes have yet to be changed, or @end.
 */
pgoff_t kvm_gmem_attributes_commit(struct kvm_gmem_attributes *attrs,
				   struct kvm_gmem_range **reserved,
				   pgoff_t start, pgoff_t end, u64 attributes)
{
	bool insert = attributes != attrs->initial;
	pgoff_t first = start, last = end;
	struct kvm_gmem_range *r, *next;
	int nr = 0;

	/* With ranges that merely touch the pages, there is something to merge. */
	r = kvm_gmem_range_find(attrs, start - (insert && start));
	for (; r && r->start < end + insert; r = next) {
		if (nr++ >= KVM_GMEM_COMMIT_BATCH && r->start < end) {
			end = r->start;
			last = end;
			break;
		}

		next = kvm_gmem_range_of(rb_next(&r->node));
		first = min(first, r->start);
		last = max(last, r->end);
		kvm_gmem_range_remove(attrs, reserved, r);
	}

	if (insert) {
		kvm_gmem_range_insert(attrs, reserved, first, last);
	} else {
		kvm_gmem_range_insert(attrs, reserved, first, start);
		kvm_gmem_range_insert(attrs, reserved, end, last);
	}

	return end;
}
