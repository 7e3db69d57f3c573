// SPDX-License-Identifier: GPL-2.0
/*
 * Who owns which page of guest_memfd, as seen by the hooks that an architecture
 * has to hand pages over, e.g. to update a table in hardware.  This knows nothing
 * of attributes, and so can tell if guest_memfd contradicts itself.
 */
#include <linux/bug.h>
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
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_prove_make_private);

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

/* A guest is about to get access to the page. */
void kvm_gmem_prove_guest_access(struct kvm *kvm, kvm_pfn_t pfn, bool is_private)
{
	void *owner = kvm_gmem_owner(pfn);

	WARN_ONCE(owner != (is_private ? kvm : NULL),
		  "pfn 0x%llx is %s, gets mapped as %s", pfn,
		  !owner ? "the host's" :
		  owner == kvm ? "this guest's" : "another guest's",
		  is_private ? "private" : "shared");
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_prove_guest_access);

/* The page is about to be freed. */
void kvm_gmem_prove_free(kvm_pfn_t pfn, kvm_pfn_t nr_pages)
{
	kvm_pfn_t end = pfn + nr_pages;

	for (; pfn < end; pfn++)
		WARN_ONCE(xa_erase(&kvm_gmem_owners, pfn),
			  "pfn 0x%llx is a guest's, gets freed", pfn);
}
