/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_GUEST_MEMFD_ATTRIBUTES_H__
#define __KVM_GUEST_MEMFD_ATTRIBUTES_H__

#include <linux/maple_tree.h>
#include <linux/types.h>

/*
 * The attributes, i.e. private or shared, of each page of a guest_memfd file.
 *
 * Only what differs from @initial is recorded, with no more entries than there
 * are runs of pages with equal attributes, so that the size of the record depends
 * on the number of runs, not on the size of the file, and a file that was never
 * converted needs no memory.
 *
 * The tree is locked externally, by the lock that the owner names with
 * mt_set_external_lock().  Changes require the lock for write, and walking over
 * runs requires it for read or write.  Lookups of a single page need no lock.
 */
struct kvm_gmem_attributes {
	struct maple_tree tree;
	u64 initial;
};

/*
 * A change that was reserved, and either must be committed, which cannot fail,
 * or dropped.  The lock must be held, for write, from reserving to then.
 */
struct kvm_gmem_attributes_change {
	struct ma_state mas;
	void *entry;
};

void kvm_gmem_attributes_init(struct kvm_gmem_attributes *attrs, u64 initial);
void kvm_gmem_attributes_destroy(struct kvm_gmem_attributes *attrs);

u64 kvm_gmem_attributes_get(struct kvm_gmem_attributes *attrs, pgoff_t index);
u64 kvm_gmem_attributes_get_run(struct kvm_gmem_attributes *attrs, pgoff_t index,
				pgoff_t *first, pgoff_t *last);
bool kvm_gmem_attributes_next(struct kvm_gmem_attributes *attrs, u64 attributes,
			      pgoff_t *start, pgoff_t *end, pgoff_t limit);
bool kvm_gmem_attributes_range_has(struct kvm_gmem_attributes *attrs,
				   pgoff_t start, pgoff_t end, u64 attributes);

unsigned long kvm_gmem_attributes_count(struct kvm_gmem_attributes *attrs,
					u64 attributes, unsigned long nr_pages,
					unsigned long *nr_runs);

int kvm_gmem_attributes_reserve(struct kvm_gmem_attributes *attrs,
				struct kvm_gmem_attributes_change *change,
				pgoff_t start, pgoff_t end, u64 attributes);
void kvm_gmem_attributes_commit(struct kvm_gmem_attributes_change *change);
void kvm_gmem_attributes_drop(struct kvm_gmem_attributes_change *change);

#endif /* __KVM_GUEST_MEMFD_ATTRIBUTES_H__ */
