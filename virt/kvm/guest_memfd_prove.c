// SPDX-License-Identifier: GPL-2.0
/*
 * Who owns which page of guest_memfd, as seen by the hooks that an architecture
 * has to hand pages over, e.g. to update a table in hardware.  This knows nothing
 * of attributes, and so can tell if guest_memfd contradicts itself.
 */
#include <linux/bug.h>
#include <linux/debugfs.h>
#include <linux/fault-inject.h>
#include <linux/highmem.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/xarray.h>

/* The VM that owns a page, by pfn.  A page without an entry is the host's. */
static DEFINE_XARRAY(kvm_gmem_owners);

static void *kvm_gmem_owner(kvm_pfn_t pfn)
{
	return xa_load(&kvm_gmem_owners, pfn);
}

void kvm_gmem_prove_make_private(struct kvm *kvm, kvm_pfn_t pfn,
				 kvm_pfn_t nr_pages)
{
	kvm_pfn_t end = pfn + nr_pages;

	for (; pfn < end; pfn++) {
		struct folio *folio = pfn_folio(pfn);
		void *owner;

		WARN_ONCE(folio_mapped(folio),
			  "pfn 0x%llx goes to a guest, is mapped in the host", pfn);
		WARN_ONCE(folio_maybe_dma_pinned(folio),
			  "pfn 0x%llx goes to a guest, is pinned by the host", pfn);

		owner = xa_store(&kvm_gmem_owners, pfn, kvm,
				 GFP_KERNEL | __GFP_NOFAIL);
		WARN_ONCE(owner, "pfn 0x%llx goes to a guest, is %s guest's already",
			  pfn, owner == kvm ? "this" : "another");
	}
}

/* Fail as if hardware didn't give the page back, if fault injection wants so. */
int kvm_gmem_prove_reclaim_error(void)
{
	static DECLARE_FAULT_ATTR(fail_gmem_reclaim);

	return should_fail(&fail_gmem_reclaim, PAGE_SIZE) ? -EIO : 0;
}

void kvm_gmem_prove_reclaim(kvm_pfn_t pfn, kvm_pfn_t nr_pages)
{
	kvm_pfn_t end = pfn + nr_pages;

	for (; pfn < end; pfn++)
		WARN_ONCE(!xa_erase(&kvm_gmem_owners, pfn),
			  "pfn 0x%llx goes to the host, is the host's already", pfn);
}

/* The host is about to get access to the page. */
void kvm_gmem_prove_host_access(kvm_pfn_t pfn)
{
	WARN_ONCE(kvm_gmem_owner(pfn),
		  "pfn 0x%llx is a guest's, gets mapped in the host", pfn);
}

/*
 * A guest is about to get access to the page.
 *
 * With attributes that are tracked per VM, guests get memory that is shared according
 * to those from a file of which all memory is private, and thus the guest's, if that
 * file can be mapped.  That is how it is, and there's nothing that the host can reach.
 */
void kvm_gmem_prove_guest_access(struct kvm *kvm, const struct kvm_memory_slot *slot,
				 kvm_pfn_t pfn, bool is_private)
{
	void *owner = kvm_gmem_owner(pfn);

	if (!is_private && owner == kvm && !kvm_has_gmem_attributes(kvm) &&
	    kvm_memslot_is_gmem_only(slot))
		return;

	WARN_ONCE(owner != (is_private ? kvm : NULL),
		  "pfn 0x%llx is %s, gets mapped as %s", pfn,
		  !owner ? "the host's" :
		  owner == kvm ? "this guest's" : "another guest's",
		  is_private ? "private" : "shared");
}

/*
 * A page is about to be mapped into a guest, by whatever path.  Memslots whose
 * memory is guest_memfd's must map guest_memfd's page for the gfn.  So must others
 * that have a guest_memfd if the gfn is private, and only then: what to map for
 * those can't change as long as mmu_lock is held.  Nobody else may map a page that
 * a guest owns.
 */
void kvm_gmem_prove_guest_mapping(struct kvm *kvm,
				  const struct kvm_memory_slot *slot, gfn_t gfn,
				  kvm_pfn_t pfn)
{
	void *owner = kvm_gmem_owner(pfn);
	struct folio *folio;
	struct file *file;
	bool from_file;

	WARN_ONCE(owner && owner != kvm,
		  "pfn 0x%llx is another guest's, gets mapped", pfn);

	if (!slot || !kvm_slot_has_gmem(slot))
		return;

	file = READ_ONCE(slot->gmem.file);
	if (!file)
		return;

	folio = pfn_valid(pfn) ? pfn_folio(pfn) : NULL;
	from_file = folio && folio->mapping == file->f_mapping;

	if (kvm_memslot_is_gmem_only(slot) || kvm_mem_is_private(kvm, gfn))
		WARN_ONCE(!from_file || folio->index != gfn - slot->base_gfn +
							slot->gmem.pgoff,
			  "gfn 0x%llx gets pfn 0x%llx, which isn't guest_memfd's",
			  gfn, pfn);
	else
		WARN_ONCE(from_file,
			  "gfn 0x%llx is shared, gets pfn 0x%llx, which is guest_memfd's",
			  gfn, pfn);
}

/* The page is about to be freed. */
void kvm_gmem_prove_free(kvm_pfn_t pfn, kvm_pfn_t nr_pages)
{
	kvm_pfn_t end = pfn + nr_pages;

	for (; pfn < end; pfn++)
		WARN_ONCE(xa_erase(&kvm_gmem_owners, pfn),
			  "pfn 0x%llx is a guest's, gets freed", pfn);
}

/* Like firmware, refuse what is the guest's already; unlike it, leave data as it is. */
static int kvm_gmem_prove_post_populate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
					struct page *src, void *opaque)
{
	if (kvm_gmem_owner(pfn))
		return -EINVAL;

	if (src)
		copy_highpage(pfn_to_page(pfn), src);

	return 0;
}

/* Takes "GFN PAGES ADDRESS", where an address of 0 means without a source. */
static ssize_t kvm_gmem_populate_write(struct file *file, const char __user *ubuf,
				       size_t count, loff_t *ppos)
{
	struct kvm *kvm = file->private_data;
	unsigned long src;
	char buf[80] = {};
	long npages, r;
	u64 gfn;

	if (count >= sizeof(buf))
		return -EINVAL;
	if (copy_from_user(buf, ubuf, count))
		return -EFAULT;
	if (sscanf(buf, "%lli %li %li", &gfn, &npages, &src) != 3)
		return -EINVAL;
	if (npages <= 0 || !PAGE_ALIGNED(src))
		return -EINVAL;

	if (kvm->mm != current->mm || kvm->vm_dead)
		return -EIO;

	guard(mutex)(&kvm->slots_lock);

	r = kvm_gmem_populate(kvm, gfn, (void __user *)src, npages, false,
			      kvm_gmem_prove_post_populate, NULL);
	if (r < 0)
		return r;

	return r == npages ? count : -EAGAIN;
}

static const struct file_operations kvm_gmem_populate_fops = {
	.owner	= THIS_MODULE,
	.open	= simple_open,
	.write	= kvm_gmem_populate_write,
};

/* Removed with the VM's directory, which waits for writers. */
void kvm_gmem_prove_create_debugfs(struct kvm *kvm)
{
	debugfs_create_file("gmem_populate", 0200, kvm->debugfs_dentry, kvm,
			    &kvm_gmem_populate_fops);
}
