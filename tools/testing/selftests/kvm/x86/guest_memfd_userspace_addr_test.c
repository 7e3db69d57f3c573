// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that comes from guest_memfd never comes from userspace_addr: not for
 * guests, not for nested guests, and not for KVM when it walks page tables.  What
 * is mapped at userspace_addr is the file itself, other memory, another VM's
 * guest_memfd, or nothing, and it is replaced while the guest has it mapped, if
 * KVM made that mistake.
 *
 * Where attributes are tracked per VM, shared memory does come from userspace_addr,
 * and private memory never does.
 *
 * Nested guests always have their page tables shadowed.  Others do if KVM runs
 * without nested paging, e.g. with kvm_amd.npt=0.
 */
#include "guest_memfd_uaddr.h"
#include "kselftest_harness.h"
#include "svm_util.h"
#include "vmx.h"

/* Machines may be slow, and busy: it's for what hangs. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

/* Twice as many as KVM prefetches around a fault. */
#define NR_PAGES	16
#define MEM_SLOT	1
#define MEM_BASE	0xc0000000ul
#define HOLE		11

#define PT_SLOT		2
#define PT_BASE		0xd0000000ul
#define PT_PAGES	64

/* Contents: of the file, as the guest writes it, and of what it must not see. */
#define OLD_TAG		0x6767676767670000ul
#define NEW_TAG		0x7878787878780000ul
#define VICTIM_TAG	0x5353535353530000ul

enum stage {
	STAGE_READ = 1,
	STAGE_READ_AGAIN,
	STAGE_WRITTEN,
	STAGE_HOLE,
};

static u64 *guest_page(int i)
{
	return (u64 *)(MEM_BASE + i * PAGE_SIZE);
}

/* Fault on the middle of what is prefetched first. */
static int nth_page(int i)
{
	return (i + 4) % NR_PAGES;
}

static void guest_expect(u64 tag)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		GUEST_ASSERT_EQ(READ_ONCE(*guest_page(nth_page(i))),
				tag + nth_page(i));
}

static void guest_code(void)
{
	int i;

	guest_expect(OLD_TAG);
	GUEST_SYNC(STAGE_READ);

	guest_expect(OLD_TAG);
	GUEST_SYNC(STAGE_READ_AGAIN);

	for (i = 0; i < NR_PAGES; i++)
		WRITE_ONCE(*guest_page(i), NEW_TAG + i);
	GUEST_SYNC(STAGE_WRITTEN);

	for (i = 0; i < NR_PAGES; i++)
		GUEST_ASSERT_EQ(READ_ONCE(*guest_page(i)), i == HOLE ? 0 : NEW_TAG + i);
	GUEST_SYNC(STAGE_HOLE);
}

/* With attributes that are tracked per VM: every other page is private. */
static bool is_private(int i)
{
	return i % 2;
}

static void guest_code_mixed(void)
{
	int i, page;

	for (i = 0; i < NR_PAGES; i++) {
		page = nth_page(i);
		GUEST_ASSERT_EQ(READ_ONCE(*guest_page(page)),
				is_private(page) ? 0 : ALIEN_TAG + page);
	}
	GUEST_SYNC(STAGE_READ);

	for (i = 0; i < NR_PAGES; i++)
		WRITE_ONCE(*guest_page(i), NEW_TAG + i);
	GUEST_SYNC(STAGE_WRITTEN);

	guest_expect(NEW_TAG);
	GUEST_SYNC(STAGE_READ_AGAIN);
}

static void __l1_guest_code(void *data, void *l2_guest_code)
{
	if (this_cpu_has(X86_FEATURE_VMX)) {
		GUEST_ASSERT(prepare_for_vmx_operation(data));
		GUEST_ASSERT(load_vmcs(data));
		prepare_vmcs(data, l2_guest_code);
		GUEST_ASSERT(!vmlaunch());
	} else {
		struct svm_test_data *svm = data;

		generic_svm_setup(svm, l2_guest_code);
		run_guest(svm->vmcb, svm->vmcb_gpa);
	}
}

static void l1_guest_code(void *data)
{
	__l1_guest_code(data, guest_code);
}

static void l1_guest_code_mixed(void *data)
{
	__l1_guest_code(data, guest_code_mixed);
}

FIXTURE(uaddr) {
	struct uaddr_map uaddr;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	u8 *mem;
	u8 *pt_mem;
	size_t size;
};

FIXTURE_VARIANT(uaddr) {
	enum uaddr uaddr;
	bool nested;
	bool nested_tdp;
};

FIXTURE_VARIANT_ADD(uaddr, file_l1) {
	.uaddr = UADDR_FILE,
};

FIXTURE_VARIANT_ADD(uaddr, file_l2) {
	.uaddr = UADDR_FILE,
	.nested = true,
};

FIXTURE_VARIANT_ADD(uaddr, file_l2_tdp) {
	.uaddr = UADDR_FILE,
	.nested = true,
	.nested_tdp = true,
};

FIXTURE_VARIANT_ADD(uaddr, other_memory_l1) {
	.uaddr = UADDR_OTHER_MEMORY,
};

FIXTURE_VARIANT_ADD(uaddr, other_memory_l2) {
	.uaddr = UADDR_OTHER_MEMORY,
	.nested = true,
};

FIXTURE_VARIANT_ADD(uaddr, other_memory_l2_tdp) {
	.uaddr = UADDR_OTHER_MEMORY,
	.nested = true,
	.nested_tdp = true,
};

FIXTURE_VARIANT_ADD(uaddr, other_gmem_l1) {
	.uaddr = UADDR_OTHER_GMEM,
};

FIXTURE_VARIANT_ADD(uaddr, other_gmem_l2) {
	.uaddr = UADDR_OTHER_GMEM,
	.nested = true,
};

FIXTURE_VARIANT_ADD(uaddr, other_gmem_l2_tdp) {
	.uaddr = UADDR_OTHER_GMEM,
	.nested = true,
	.nested_tdp = true,
};

FIXTURE_VARIANT_ADD(uaddr, nothing_l1) {
	.uaddr = UADDR_NOTHING,
};

FIXTURE_VARIANT_ADD(uaddr, nothing_l2) {
	.uaddr = UADDR_NOTHING,
	.nested = true,
};

FIXTURE_VARIANT_ADD(uaddr, nothing_l2_tdp) {
	.uaddr = UADDR_NOTHING,
	.nested = true,
	.nested_tdp = true,
};

#define uaddr_data FIXTURE_DATA(uaddr)
#define uaddr_variant FIXTURE_VARIANT(uaddr)

/* Have the page tables of nested guests' memory in guest_memfd, too. */
static void set_up_nested(uaddr_data *self, const uaddr_variant *variant)
{
	gva_t data = 0;
	int fd;

	if (variant->nested_tdp) {
		fd = vm_create_guest_memfd(self->vm, PT_PAGES * PAGE_SIZE, MMAP_SHARED);
		vm_mem_add(self->vm, VM_MEM_SRC_ANONYMOUS, PT_BASE, PT_SLOT, PT_PAGES,
			   KVM_MEM_GUEST_MEMFD, fd, 0);
		self->pt_mem = addr_gpa2hva(self->vm, PT_BASE);
		map_at(self->pt_mem, PT_PAGES * PAGE_SIZE, fd);
		vm_enable_tdp(self->vm);
	}

	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(self->vm, &data);
	else
		vcpu_alloc_svm(self->vm, &data);
	vcpu_args_set(self->vcpu, 1, data);

	if (variant->nested_tdp) {
		tdp_identity_map_default_memslots(self->vm);
		self->vm->memslots[MEM_REGION_PT] = PT_SLOT;
		tdp_map(self->vm, MEM_BASE, MEM_BASE, self->size);
	}
}

FIXTURE_SETUP(uaddr)
{
	int i;

	if (variant->nested && !kvm_cpu_has(X86_FEATURE_SVM) &&
	    !kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "Needs nested virtualization");
	if (variant->nested_tdp && !kvm_cpu_has_tdp())
		SKIP(return, "Needs nested paging for nested guests");

	self->size = NR_PAGES * PAGE_SIZE;
	self->vm = vm_create_with_one_vcpu(&self->vcpu, variant->nested ?
					   (void *)l1_guest_code : guest_code);
	self->fd = vm_create_guest_memfd(self->vm, self->size, MMAP_SHARED);
	self->mem = map_at(NULL, self->size, self->fd);
	fill(self->mem, self->size, OLD_TAG);
	uaddr_init(&self->uaddr, variant->uaddr, self->size, self->fd);

	vm_set_user_memory_region2(self->vm, MEM_SLOT, KVM_MEM_GUEST_MEMFD, MEM_BASE,
				   self->size, self->uaddr.mem, self->fd, 0);
	for (i = 0; i < NR_PAGES; i++)
		virt_pg_map(self->vm, MEM_BASE + i * PAGE_SIZE, MEM_BASE + i * PAGE_SIZE);
	if (variant->nested)
		set_up_nested(self, variant);
}

FIXTURE_TEARDOWN(uaddr)
{
	if (!self->vm)
		return;

	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, self->size);
	kvm_close(self->fd);
	uaddr_free(&self->uaddr);
}

static void run(uaddr_data *self, enum stage stage)
{
	struct ucall uc;

	vcpu_run(self->vcpu);
	switch (get_ucall(self->vcpu, &uc)) {
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	case UCALL_SYNC:
		TEST_ASSERT_EQ(uc.args[1], stage);
		break;
	default:
		TEST_FAIL("Unexpected exit %u, not stage %u",
			  self->vcpu->run->exit_reason, stage);
	}
}

/* What the guest sees, and what it writes, is guest_memfd's. */
TEST_F(uaddr, memory)
{
	const char *victim = "what has taken the place of userspace_addr";
	u8 *uaddr = self->uaddr.mem;

	run(self, STAGE_READ);
	uaddr_expect_untouched(&self->uaddr);

	/* Somebody else uses the memory, or at least the address, next. */
	if (variant->uaddr != UADDR_NOTHING)
		kvm_munmap(uaddr, self->size);
	map_at(uaddr, self->size, -1);
	fill(uaddr, self->size, VICTIM_TAG);
	run(self, STAGE_READ_AGAIN);
	run(self, STAGE_WRITTEN);
	expect(uaddr, self->size, VICTIM_TAG, victim);
	expect(self->mem, self->size, NEW_TAG, "the file");

	/* What is freed is out of reach. */
	TEST_ASSERT(!fallocate(self->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       HOLE * PAGE_SIZE, PAGE_SIZE), "PUNCH_HOLE failed");
	run(self, STAGE_HOLE);
	expect(uaddr, self->size, VICTIM_TAG, victim);
	kvm_munmap(uaddr, self->size);
}

/* Page tables are what they are in guest_memfd. */
TEST_F(uaddr, page_tables)
{
	if (!self->pt_mem)
		SKIP(return, "Needs page tables for a nested guest");

	map_at(self->pt_mem, PT_PAGES * PAGE_SIZE, -1);
	run(self, STAGE_READ);
	run(self, STAGE_READ_AGAIN);
	run(self, STAGE_WRITTEN);
	expect(self->mem, self->size, NEW_TAG, "the file");
}

static bool has_vm_scoped_vms(void)
{
	return arch_has_private_vms() &&
	       (kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES) & ATTR_PRIVATE);
}

static void test_vm_scoped(bool nested)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = PRIVATE_VM_TYPE,
	};
	uaddr_data self = { .size = NR_PAGES * PAGE_SIZE };
	uaddr_variant variant = { .nested = nested };
	u64 val;
	u8 *mem;
	int i;

	self.vm = vm_create_shape_with_one_vcpu(shape, &self.vcpu, nested ?
						(void *)l1_guest_code_mixed :
						guest_code_mixed);
	self.fd = vm_create_guest_memfd(self.vm, self.size, 0);
	uaddr_init(&self.uaddr, UADDR_OTHER_MEMORY, self.size, -1);
	mem = self.uaddr.mem;
	vm_set_user_memory_region2(self.vm, MEM_SLOT, KVM_MEM_GUEST_MEMFD, MEM_BASE,
				   self.size, mem, self.fd, 0);
	for (i = 0; i < NR_PAGES; i++) {
		virt_pg_map(self.vm, MEM_BASE + i * PAGE_SIZE, MEM_BASE + i * PAGE_SIZE);
		if (is_private(i))
			vm_mem_set_private(self.vm, MEM_BASE + i * PAGE_SIZE, PAGE_SIZE);
	}
	if (nested)
		set_up_nested(&self, &variant);

	run(&self, STAGE_READ);
	run(&self, STAGE_WRITTEN);
	for (i = 0; i < NR_PAGES; i++) {
		val = READ_ONCE(*(u64 *)(mem + i * PAGE_SIZE));
		TEST_ASSERT(val == (is_private(i) ? ALIEN_TAG : NEW_TAG) + i,
			    "Page %d at userspace_addr: 0x%lx", i, val);
	}
	run(&self, STAGE_READ_AGAIN);

	kvm_vm_free(self.vm);
	kvm_munmap(mem, self.size);
	kvm_close(self.fd);
}

/* Private memory is guest_memfd's, and only that, wherever its neighbors are. */
TEST(vm_scoped_l1)
{
	if (!has_vm_scoped_vms())
		SKIP(return, "Needs attributes that are tracked per VM");
	test_vm_scoped(false);
}

TEST(vm_scoped_l2)
{
	if (!has_vm_scoped_vms())
		SKIP(return, "Needs attributes that are tracked per VM");
	if (!kvm_cpu_has(X86_FEATURE_SVM) && !kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "Needs nested virtualization");
	test_vm_scoped(true);
}

int main(int argc, char *argv[])
{
	require_gmem_attributes();

	return test_harness_run(argc, argv);
}
