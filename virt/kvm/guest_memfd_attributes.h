/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_GUEST_MEMFD_ATTRIBUTES_H__
#define __KVM_GUEST_MEMFD_ATTRIBUTES_H__

#include <linux/kvm.h>
#include <linux/rbtree.h>
#include <linux/types.h>

struct kvm_gmem_range;

/*
 * The attributes of the pages of a guest_memfd file, i.e. 0 for shared, or
 * KVM_MEMORY_ATTRIBUTE_PRIVATE.  Callers must keep a change away from all other
 * uses.  Ranges of pages are [start, end) throughout.
 */
struct kvm_gmem_attributes {
	struct rb_root ranges;
	u64 initial;
	unsigned long nr_ranges;
	unsigned long nr_pages;		/* Pages that don't have @initial. */
};

int kvm_gmem_attributes_cache_init(void);
void kvm_gmem_attributes_cache_exit(void);

static inline void kvm_gmem_attributes_init(struct kvm_gmem_attributes *attrs,
					    u64 initial)
{
	*attrs = (struct kvm_gmem_attributes) { .initial = initial };
}

static inline unsigned long
kvm_gmem_attributes_nr_private(struct kvm_gmem_attributes *attrs,
			       unsigned long nr_pages)
{
	return attrs->initial ? nr_pages - attrs->nr_pages : attrs->nr_pages;
}

void kvm_gmem_attributes_destroy(struct kvm_gmem_attributes *attrs);

u64 kvm_gmem_attributes_get(struct kvm_gmem_attributes *attrs, pgoff_t index);
bool kvm_gmem_attributes_next(struct kvm_gmem_attributes *attrs, u64 attributes,
			      pgoff_t *start, pgoff_t *next, pgoff_t end);
unsigned long kvm_gmem_attributes_nr_runs(struct kvm_gmem_attributes *attrs,
					  unsigned long nr_pages);

struct kvm_gmem_range *kvm_gmem_attributes_reserve(void);
void kvm_gmem_attributes_drop(struct kvm_gmem_range *reserved);
pgoff_t kvm_gmem_attributes_commit(struct kvm_gmem_attributes *attrs,
				   struct kvm_gmem_range **reserved,
				   pgoff_t start, pgoff_t end, u64 attributes);

#endif /* __KVM_GUEST_MEMFD_ATTRIBUTES_H__ */
