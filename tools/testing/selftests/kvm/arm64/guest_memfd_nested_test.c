// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd memory in a VM that is a hypervisor itself, i.e. has EL2.
 *
 * What the hypervisor's own guest maps is in shadow page tables, and the page that
 * VNCR_EL2 points to is mapped by KVM on behalf of the hypervisor.  Verify that
 * both are faulted in from the file, and don't outlive what is in the file: a hole
 * that is punched is one, whoever maps the page.
 */
#include <fcntl.h>
#include <unistd.h>

#include <asm/sysreg.h>
#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Shadow page tables are what takes long on an emulated machine, see below. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define TEST_SLOT	10
#define TEST_GPA	((gpa_t)SZ_4G)
#define NR_PAGES	16

/*
 * A hole is punched in the middle.  There's only one, as KVM unmaps shadow page tables
 * as a whole, and the more bits physical addresses have the longer that takes.
 */
#define HOLE		4
#define NR_HOLE		8

/* Where VNCR_EL2's page has TPIDR_EL2. */
#define VNCR_TPIDR	0x90

/* Stage-2 blocks of normal memory (MemAttr), to be read and written (S2AP). */
#define S2_BLOCK_SHIFT	30
#define S2_BLOCK	(PTE_VALID | 0xf << 2 | 3 << 6 | PTE_SHARED | PTE_AF)

/* A table of them, which starts at level 1, and is one page of 4 KiB. */
#define S2_BITS		39
#define S2_VTCR		(FIELD_PREP(VTCR_EL2_T0SZ, 64 - S2_BITS) |		\
			 FIELD_PREP(VTCR_EL2_SL0, 1) |				\
			 SYS_FIELD_PREP_ENUM(VTCR_EL2, IRGN0, WBWA) |		\
			 SYS_FIELD_PREP_ENUM(VTCR_EL2, ORGN0, WBWA) |		\
			 SYS_FIELD_PREP_ENUM(VTCR_EL2, SH0, INNER) |		\
			 SYS_FIELD_PREP_ENUM(VTCR_EL2, TG0, 4K) |		\
			 FIELD_PREP(VTCR_EL2_PS, 2) | VTCR_EL2_RES1)

static gpa_t stage2_gpa;
static size_t page_size;

static bool in_hole(u64 page)
{
	return page >= HOLE && page < HOLE + NR_HOLE;
}

static u64 *guest_word(u64 page)
{
	return (u64 *)(TEST_GPA + page * page_size);
}

#define copy_el2_to_el1(reg)						\
	write_sysreg_s(read_sysreg_s(SYS_##reg##_EL1), SYS_##reg##_EL12)

/* Run @code at EL1, with the same stage-1 tables and on the same stack. */
static void enter_l2(void (*code)(void), u64 hcr)
{
	GUEST_ASSERT_EQ(get_current_el(), 2);

	copy_el2_to_el1(SCTLR);
	copy_el2_to_el1(CPACR);
	copy_el2_to_el1(MAIR);
	copy_el2_to_el1(TCR);
	copy_el2_to_el1(TTBR0);

	write_sysreg(HCR_EL2_RW | HCR_EL2_E2H | hcr, hcr_el2);
	write_sysreg(code, elr_el2);
	write_sysreg(PSR_MODE_EL1h | PSR_D_BIT | PSR_A_BIT | PSR_I_BIT | PSR_F_BIT,
		     spsr_el2);
	asm volatile("mov	x0, sp\n"
		     "msr	sp_el1, x0\n"
		     "isb\n"
		     "eret" : : : "x0", "memory");
	__builtin_unreachable();
}

static void l2_memory_code(void)
{
	u64 i;

	GUEST_ASSERT_EQ(get_current_el(), 1);

	for (i = 0; i < NR_PAGES; i++)
		WRITE_ONCE(*guest_word(i), 0x1000 + i);
	GUEST_SYNC(0);

	for (i = 0; i < NR_PAGES; i++)
		GUEST_ASSERT_EQ(READ_ONCE(*guest_word(i)), in_hole(i) ? 0 : 0x1000 + i);
	for (i = 0; i < NR_PAGES; i++)
		WRITE_ONCE(*guest_word(i), 0x2000 + i);
	GUEST_DONE();
}

static void l1_memory_code(void)
{
	write_sysreg(S2_VTCR, vtcr_el2);
	write_sysreg(stage2_gpa, vttbr_el2);
	enter_l2(l2_memory_code, HCR_EL2_VM);
}

static void l2_vncr_code(void)
{
	/* With NV2, that's memory. */
	GUEST_ASSERT_EQ(read_sysreg_s(SYS_TPIDR_EL2), 0);
	write_sysreg_s(0x1000, SYS_TPIDR_EL2);
	GUEST_SYNC(0);

	/* The host has punched a hole. */
	GUEST_ASSERT_EQ(read_sysreg_s(SYS_TPIDR_EL2), 0);
	write_sysreg_s(0x2000, SYS_TPIDR_EL2);
	GUEST_DONE();
}

static void l1_vncr_code(void)
{
	write_sysreg_s((u64)guest_word(HOLE), SYS_VNCR_EL2);
	enter_l2(l2_vncr_code, HCR_EL2_NV | HCR_EL2_NV2);
}

/* Returns the memory as the host has it mapped. */
static u8 *create_vm(struct kvm_vcpu **vcpu, int *fd, void *guest_code)
{
	const size_t size = NR_PAGES * page_size;
	struct kvm_vcpu_init init;
	struct kvm_vm *vm = vm_create(1);
	u64 i, *stage2;

	kvm_get_default_vcpu_target(vm, &init);
	init.features[0] |= BIT(KVM_ARM_VCPU_HAS_EL2);
	*vcpu = aarch64_vcpu_add(vm, 0, &init, guest_code);
	kvm_arch_vm_finalize_vcpus(vm);

	*fd = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_MMAP |
					      GUEST_MEMFD_FLAG_INIT_SHARED);
	vm_set_user_memory_region2(vm, TEST_SLOT, KVM_MEM_GUEST_MEMFD, TEST_GPA, size,
				   NULL, *fd, 0);
	virt_map(vm, TEST_GPA, TEST_GPA, NR_PAGES);

	/* What the hypervisor maps for its guest: everything, where it is anyway. */
	stage2_gpa = vm_phy_page_alloc(vm, KVM_GUEST_PAGE_TABLE_MIN_PADDR, 0);
	stage2 = addr_gpa2hva(vm, stage2_gpa);
	for (i = 0; i < BIT(S2_BITS - S2_BLOCK_SHIFT); i++)
		stage2[i] = i << S2_BLOCK_SHIFT | S2_BLOCK;

	sync_global_to_guest(vm, stage2_gpa);
	sync_global_to_guest(vm, page_size);
	return kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd);
}

static void run(struct kvm_vcpu *vcpu, u64 expected)
{
	struct ucall uc;

	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, expected);
}

static void punch_hole(int fd)
{
	kvm_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HOLE * page_size,
		      NR_HOLE * page_size);
}

/* Shadow stage-2 tables map what is in the file, as long as it is. */
TEST(stage2)
{
	struct kvm_vcpu *vcpu;
	int fd;
	u64 i;
	u8 *mem;

	mem = create_vm(&vcpu, &fd, l1_memory_code);
	run(vcpu, UCALL_SYNC);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT_EQ(*(u64 *)(mem + i * page_size), 0x1000 + i);

	punch_hole(fd);
	run(vcpu, UCALL_DONE);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT_EQ(*(u64 *)(mem + i * page_size), 0x2000 + i);

	kvm_munmap(mem, NR_PAGES * page_size);
	kvm_close(fd);
	kvm_vm_free(vcpu->vm);
}

/* So is the page that VNCR_EL2 points to. */
TEST(vncr)
{
	struct kvm_vcpu *vcpu;
	u64 *tpidr;
	int fd;
	u8 *mem;

	mem = create_vm(&vcpu, &fd, l1_vncr_code);
	run(vcpu, UCALL_SYNC);
	tpidr = (u64 *)(mem + HOLE * page_size + VNCR_TPIDR);
	TEST_ASSERT_EQ(*tpidr, 0x1000);

	punch_hole(fd);
	run(vcpu, UCALL_DONE);
	TEST_ASSERT_EQ(*tpidr, 0x2000);

	kvm_munmap(mem, NR_PAGES * page_size);
	kvm_close(fd);
	kvm_vm_free(vcpu->vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_ARM_EL2));
	page_size = getpagesize();

	return test_harness_run(argc, argv);
}
