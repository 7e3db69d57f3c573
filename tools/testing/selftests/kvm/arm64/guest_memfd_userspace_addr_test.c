// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that comes from guest_memfd never comes from userspace_addr: not for
 * guests, and not for KVM when it writes stolen time, or the tables of an ITS.
 * Nor does what is mapped at userspace_addr decide which memory is unmapped from
 * stage-2 when a vCPU is reset.
 */
#include <linux/arm-smccc.h>
#include <linux/sizes.h>

#include "guest_memfd_uaddr.h"
#include "gic.h"
#include "gic_v3.h"
#include "kselftest_harness.h"
#include "vgic.h"

#define MEM_SLOT	10
#define MEM_BASE	((gpa_t)SZ_4G)
#define MEM_SIZE	((size_t)SZ_256K)
/* An ITS wants its table aligned like that. */
#define TABLE_OFFSET	SZ_64K
#define TIME_OFFSET	SZ_128K

/* Ordinary memory. */
#define ANON_SLOT	11
#define ANON_BASE	(2 * MEM_BASE)

/* Contents: of the file, as the guest writes it, and of what it must not see. */
#define OLD_TAG		0x6767676767670000ul
#define NEW_TAG		0x7878787878780000ul
#define VICTIM_TAG	0x5353535353530000ul

/* Entries of the collection table: for vCPU 0, and for one that doesn't exist. */
#define COLLECTION	3
#define GOOD_CTE	(BIT_ULL(63) | COLLECTION)
#define BAD_CTE		(GOOD_CTE | 0x5555ul << 16)

/* What KVM writes, see Documentation/virt/kvm/arm/pvtime.rst. */
struct stolen_time {
	u32 revision;
	u32 attributes;
	u64 stolen_time;
};

static size_t page_size;

static void guest_expect(gpa_t base, u64 tag)
{
	size_t i;

	for (i = 0; i < MEM_SIZE / page_size; i++)
		GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)(base + i * page_size)), tag + i);
}

static void guest_memory(void)
{
	size_t i;

	guest_expect(MEM_BASE, OLD_TAG);
	GUEST_SYNC(0);

	guest_expect(MEM_BASE, OLD_TAG);
	for (i = 0; i < MEM_SIZE / page_size; i++)
		WRITE_ONCE(*(u64 *)(MEM_BASE + i * page_size), NEW_TAG + i);
	GUEST_DONE();
}

static void guest_stolen_time(void)
{
	struct arm_smccc_res res;

	smccc_hvc(ARM_SMCCC_HV_PV_TIME_ST, 0, 0, 0, 0, 0, 0, 0, &res);
	GUEST_ASSERT_EQ(res.a0, MEM_BASE + TIME_OFFSET);
	GUEST_SYNC(0);
	GUEST_DONE();
}

static void guest_reset(void)
{
	guest_expect(MEM_BASE, OLD_TAG);
	guest_expect(ANON_BASE, OLD_TAG);
	GUEST_DONE();
}

FIXTURE(uaddr) {
	struct uaddr_map uaddr;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u8 *mem;
	int fd;
};

FIXTURE_VARIANT(uaddr) {
	enum uaddr uaddr;
	bool can_be_private;
};

FIXTURE_VARIANT_ADD(uaddr, file) { UADDR_FILE, false };
FIXTURE_VARIANT_ADD(uaddr, other_memory) { UADDR_OTHER_MEMORY, false };
FIXTURE_VARIANT_ADD(uaddr, other_gmem) { UADDR_OTHER_GMEM, false };
FIXTURE_VARIANT_ADD(uaddr, nothing) { UADDR_NOTHING, false };
FIXTURE_VARIANT_ADD(uaddr, private_other_memory) { UADDR_OTHER_MEMORY, true };

#define uaddr_data FIXTURE_DATA(uaddr)

FIXTURE_SETUP(uaddr)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = variant->can_be_private ? PRIVATE_VM_TYPE : 0,
	};

	if (variant->can_be_private && !arch_has_private_vms())
		SKIP(return, "Needs software-protected VMs");

	self->vm = __vm_create(shape, 1, 0);
	self->vcpu = vm_vcpu_add(self->vm, 0, NULL);
	kvm_arch_vm_finalize_vcpus(self->vm);

	self->fd = vm_create_guest_memfd(self->vm, MEM_SIZE, MMAP_SHARED);
	self->mem = map_at(NULL, MEM_SIZE, self->fd);
	fill(self->mem, MEM_SIZE, OLD_TAG);
	uaddr_init(&self->uaddr, variant->uaddr, MEM_SIZE, self->fd);
	vm_set_user_memory_region2(self->vm, MEM_SLOT, KVM_MEM_GUEST_MEMFD, MEM_BASE,
				   MEM_SIZE, self->uaddr.mem, self->fd, 0);
	virt_map(self->vm, MEM_BASE, MEM_BASE,
		 vm_calc_num_guest_pages(self->vm->mode, MEM_SIZE));
	sync_global_to_guest(self->vm, page_size);
}

FIXTURE_TEARDOWN(uaddr)
{
	if (!self->vm)
		return;

	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, MEM_SIZE);
	kvm_close(self->fd);
	uaddr_free(&self->uaddr);
}

static void run(uaddr_data *self, u64 expected_cmd)
{
	struct ucall uc;
	u64 cmd;

	vcpu_run(self->vcpu);
	cmd = get_ucall(self->vcpu, &uc);
	if (cmd == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(cmd, expected_cmd);
}

/* What the guest sees, and what it writes, is guest_memfd's. */
TEST_F(uaddr, memory)
{
	vcpu_arch_set_entry_point(self->vcpu, guest_memory);
	run(self, UCALL_SYNC);
	uaddr_expect_untouched(&self->uaddr);

	/* Somebody else uses the memory, or at least the address, next. */
	map_at(self->uaddr.mem, MEM_SIZE, -1);
	fill(self->uaddr.mem, MEM_SIZE, VICTIM_TAG);
	run(self, UCALL_DONE);
	expect(self->uaddr.mem, MEM_SIZE, VICTIM_TAG, "what replaced userspace_addr");
	expect(self->mem, MEM_SIZE, NEW_TAG, "the file");
}

TEST_F(uaddr, stolen_time)
{
	struct stolen_time *st = (void *)self->mem + TIME_OFFSET;
	u64 ipa = MEM_BASE + TIME_OFFSET;

	if (__vcpu_has_device_attr(self->vcpu, KVM_ARM_VCPU_PVTIME_CTRL,
				   KVM_ARM_VCPU_PVTIME_IPA))
		SKIP(return, "Needs CONFIG_SCHED_INFO");

	vcpu_device_attr_set(self->vcpu, KVM_ARM_VCPU_PVTIME_CTRL,
			     KVM_ARM_VCPU_PVTIME_IPA, &ipa);
	memset(st, 0xff, sizeof(*st));

	/* KVM clears it at first, and adds to what is there from then on. */
	vcpu_arch_set_entry_point(self->vcpu, guest_stolen_time);
	run(self, UCALL_SYNC);
	TEST_ASSERT(!st->revision && !st->attributes && st->stolen_time < BIT_ULL(40),
		    "Stolen time isn't in the file");
	uaddr_expect_untouched(&self->uaddr);

	st->stolen_time = BIT_ULL(40);
	run(self, UCALL_DONE);
	TEST_ASSERT(st->stolen_time >= BIT_ULL(40) && st->stolen_time < BIT_ULL(41),
		    "Stolen time isn't in the file, is 0x%lx", st->stolen_time);
	uaddr_expect_untouched(&self->uaddr);
}

static int its_ctrl(int its_fd, u64 attr)
{
	int r = __kvm_device_attr_set(its_fd, KVM_DEV_ARM_VGIC_GRP_CTRL, attr, NULL);

	return r ? errno : 0;
}

/* The ITS keeps its tables in guest memory, while the VM is saved and restored. */
TEST_F(uaddr, its)
{
	u64 baser = GITS_BASER_VALID | GITS_BASER_PAGE_SIZE_64K | (MEM_BASE + TABLE_OFFSET);
	u64 *table = (void *)self->mem + TABLE_OFFSET;
	u64 *alien = (void *)self->uaddr.mem + TABLE_OFFSET;
	int its_fd;

	if (!kvm_supports_vgic_v3())
		SKIP(return, "Needs a GICv3");

	/* The library has created one. */
	its_fd = vgic_its_setup(self->vm);
	/* KVM has the collection table in GITS_BASER1. */
	kvm_device_attr_set(its_fd, KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
			    GITS_BASER + sizeof(u64), &baser);

	table[0] = GOOD_CTE;
	table[1] = 0;
	if (self->uaddr.is_alien)
		alien[0] = BAD_CTE;
	TEST_ASSERT_EQ(its_ctrl(its_fd, KVM_DEV_ARM_ITS_RESTORE_TABLES), 0);

	memset(table, 0xff, page_size);
	TEST_ASSERT_EQ(its_ctrl(its_fd, KVM_DEV_ARM_ITS_SAVE_TABLES), 0);
	TEST_ASSERT_EQ(table[0], GOOD_CTE);
	TEST_ASSERT_EQ(table[1], 0);
	if (self->uaddr.is_alien) {
		TEST_ASSERT_EQ(alien[0], BAD_CTE);
		alien[0] = ALIEN_TAG + TABLE_OFFSET / page_size;
		uaddr_expect_untouched(&self->uaddr);
	}

	if (variant->can_be_private) {
		memset(table, 0xff, page_size);
		convert_page(self->fd, TABLE_OFFSET, ATTR_PRIVATE);
		TEST_ASSERT_EQ(its_ctrl(its_fd, KVM_DEV_ARM_ITS_SAVE_TABLES), EFAULT);
		convert_page(self->fd, TABLE_OFFSET, ATTR_SHARED);
		TEST_ASSERT_EQ(table[0], -1ull);
		uaddr_expect_untouched(&self->uaddr);
	}

	kvm_close(its_fd);
}

/* Have the vCPU start over, and count the pages that it faults in. */
static u64 reset_and_run(uaddr_data *self)
{
	u64 sp = vcpu_get_reg(self->vcpu, ctxt_reg_alias(self->vcpu, SYS_SP_EL1));
	u64 before = vcpu_get_stat(self->vcpu, pf_fixed);

	aarch64_vcpu_setup(self->vcpu, &self->vcpu->init);
	vcpu_set_reg(self->vcpu, ctxt_reg_alias(self->vcpu, SYS_SP_EL1), sp);
	vcpu_arch_set_entry_point(self->vcpu, guest_reset);
	run(self, UCALL_DONE);
	return vcpu_get_stat(self->vcpu, pf_fixed) - before;
}

/*
 * On hardware on which KVM unmaps memory when a vCPU is reset, for caches to be
 * maintained when the guest faults it in again, that goes for all memory.
 */
TEST_F(uaddr, reset)
{
	u64 nr = MEM_SIZE / page_size, faults;
	u8 *anon;

	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, ANON_BASE, ANON_SLOT,
				    vm_calc_num_guest_pages(self->vm->mode, MEM_SIZE), 0);
	virt_map(self->vm, ANON_BASE, ANON_BASE,
		 vm_calc_num_guest_pages(self->vm->mode, MEM_SIZE));
	anon = addr_gpa2hva(self->vm, ANON_BASE);
	fill(anon, MEM_SIZE, OLD_TAG);
	madvise(anon, MEM_SIZE, MADV_NOHUGEPAGE);

	faults = reset_and_run(self);
	TEST_ASSERT(faults >= 2 * nr, "The guest faulted in %lu pages", faults);
	faults = reset_and_run(self);
	if (faults < nr)
		SKIP(return, "Needs a CPU that doesn't force write-back (FWB)");
	TEST_ASSERT(faults >= 2 * nr,
		    "Of %lu pages, the guest faulted in %lu after a reset", 2 * nr, faults);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	require_gmem_attributes();

	return test_harness_run(argc, argv);
}
