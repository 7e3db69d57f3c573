// SPDX-License-Identifier: GPL-2.0
/*
 * Boot Linux in memory that the VMM can't reach: a small VMM for arm64.
 *
 * All memory of the guest is one guest_memfd, and all of it starts private: the
 * guest may touch it, the VMM may not.  The guest is Linux, unmodified, with
 * the driver that it has for pKVM: it asks by hypercall for pages to be shared,
 * namely those through which it exchanges data with its devices.  The VMM
 * converts them in place, and has a disk that works with nothing but these.
 *
 * guest_memfd_convert.c is about the ioctl, this is about what surrounds it.
 * In this order: memory, hypercalls, an inspection of what the VMM can see,
 * the guest's console and disk, its device tree, and the making of the VM.
 *
 *	guest_memfd_linux [--bypass] IMAGE INITRD DISK
 *
 * It prints what it expected and what happened, and exits with 0 only if the
 * two always agree.  IMAGE is an arm64 Image with 4 KiB pages and
 * CONFIG_ARM_PKVM_GUEST, and init, in INITRD, talks to the inspection, see
 * guest_says().  With --bypass, the disk has its driver use any memory, as a
 * disk that was not made for such guests would: the VMM has to notice.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#define PAGE		4096
#define MIB		(1024 * 1024)

/*
 * What the guest finds where.  KVM emulates the interrupt controller (GIC), the
 * VMM whatever else is not memory.
 */
#define GIC_DIST	0x08000000
#define GIC_REDIST	0x080a0000
#define UART		0x09000000
#define DISK		0x0a000000
#define DISK_SPI	0		/* shared peripheral interrupt */
#define RAM		0x40000000
#define RAM_SIZE	(128 * MIB)

/* And within its memory.  All DMA goes to and from the pool. */
#define KERNEL_OFF	0
#define INITRD_OFF	(64 * MIB)
#define FDT_OFF		(96 * MIB)
#define POOL_OFF	(RAM_SIZE - POOL_SIZE)
#define POOL_SIZE	(4 * MIB)

/* Use the UART above, and let init's messages through. */
#define BOOTARGS	"earlycon=pl011,0x9000000 loglevel=6 printk.devkmsg=on"

static int vm_fd, gmem_fd, vcpu_fd;
static struct kvm_run *run;

#include "arm64_regs.h"

/* The story: one line per event, with what was expected and what happened. */
static int nr_checks, nr_wrong;

static void check(const char *what, const char *want, const char *got)
{
	int ok = !strcmp(want, got);

	nr_checks++;
	nr_wrong += !ok;
	printf("[%d] %s: expected %s, got %s   %s\n", nr_checks, what, want,
	       got, ok ? "ok" : "WRONG");
}

static void check_nr(const char *what, int want, int got)
{
	char w[16], g[16];

	snprintf(w, sizeof(w), "%d", want);
	snprintf(g, sizeof(g), "%d", got);
	check(what, w, g);
}

/*
 * Memory
 *
 * The VMM has the whole file mapped, all the time: mapping is not touching.  It
 * remembers what is shared, as there is no way to ask KVM.
 */
static char *ram;
static bool shared[RAM_SIZE / PAGE];

/* Returns 0, or -1 and sets errno.  A call that fails has changed nothing. */
static int convert(__u64 offset, __u64 size, bool share)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = offset,
		.size = size,
		.attributes = share ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};

	if (ioctl(gmem_fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs))
		return -1;
	memset(shared + offset / PAGE, share, size / PAGE);
	return 0;
}

/*
 * What the guest starts with is written while its place is shared, and made
 * private before the guest runs.  The contents stay.
 */
static void load(__u64 offset, const void *data, size_t size)
{
	__u64 whole_pages = (size + PAGE - 1) & -PAGE;

	if (convert(offset, whole_pages, true))
		err(1, "cannot make memory shared");
	memcpy(ram + offset, data, size);
	if (convert(offset, whole_pages, false))
		err(1, "cannot make memory private");
}

/*
 * Touching a private page raises SIGBUS.  Which pages are private is the
 * guest's choice, so whoever goes where the guest points has to expect that:
 * they find themselves back at their sigsetjmp(), with "trouble" saying what is
 * wrong.  At any other time SIGBUS is a bug of the VMM, and kills it.
 */
static sigjmp_buf back;
static struct {
	const char *what;
	__u64 gpa;
} trouble;

static void bail_out(const char *what, __u64 gpa)
{
	trouble.what = what;
	trouble.gpa = gpa;
	siglongjmp(back, 1);
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	__u64 offset = (char *)info->si_addr - ram;

	(void)context;
	if (info->si_code == BUS_ADRERR && offset < RAM_SIZE)
		bail_out("private memory", RAM + offset);
	signal(sig, SIG_DFL);
}

static void expect_sigbus(bool expect)
{
	struct sigaction action = { .sa_handler = SIG_DFL };

	if (expect) {
		action.sa_sigaction = on_sigbus;
		action.sa_flags = SA_SIGINFO | SA_NODEFER;
	}
	if (sigaction(SIGBUS, &action, NULL))
		err(1, "sigaction");
}

static bool host_can_read(__u64 offset)
{
	if (sigsetjmp(back, 0))
		return false;
	__atomic_load_n(ram + offset, __ATOMIC_RELAXED);
	return true;
}

/*
 * Hypercalls
 *
 * KVM tells the guest which functions there are, and knows of none to share
 * memory.  So it has to forward that question to the VMM, and the calls of the
 * three functions that the guest is looking for, see
 * Documentation/virt/kvm/arm/hypercalls.rst.
 */
#define FUNC_FEATURES		0x86000000
#define FUNC_HYP_MEMINFO	0xc6000002
#define FUNC_MEM_SHARE		0xc6000003
#define FUNC_MEM_UNSHARE	0xc6000004
#define FEATURE(func)		(1ULL << ((func) & 0xffff))

#define SMCCC_SUCCESS		0
#define SMCCC_INVALID_PARAMETER	-3

static int nr_shares, nr_unshares;

/*
 * The guest wants the page at this address to be shared, or no longer.
 *
 * Making a page private fails with EAGAIN if anybody else refers to it.  With
 * this VMM that doesn't happen, its I/O is over when the guest runs.  One that
 * does I/O in the background waits for it to finish and calls again, but does
 * not do so forever: the guest may ask for any page, at any time.
 */
static long mem_share(__u64 gpa, bool share)
{
	__u64 offset = gpa - RAM;

	if (offset >= RAM_SIZE || offset % PAGE || convert(offset, PAGE, share))
		return SMCCC_INVALID_PARAMETER;
	nr_shares += share;
	nr_unshares += !share;
	return SMCCC_SUCCESS;
}

/* Arguments are in x1 to x3, results go to x0 to x3. */
static void hypercall(void)
{
	__u64 x[4];
	bool share;
	int i;

	for (i = 1; i < 4; i++)
		x[i] = get_reg(CORE_REG(regs.regs[i]));

	x[0] = SMCCC_INVALID_PARAMETER;
	switch (run->hypercall.nr) {
	case FUNC_FEATURES:
		x[0] = get_reg(KVM_REG_ARM_VENDOR_HYP_BMAP) |
		       FEATURE(FUNC_HYP_MEMINFO) |
		       FEATURE(FUNC_MEM_SHARE) | FEATURE(FUNC_MEM_UNSHARE);
		x[1] = 0;
		x[2] = get_reg(KVM_REG_ARM_VENDOR_HYP_BMAP_2);
		x[3] = 0;
		break;
	case FUNC_HYP_MEMINFO:
		if (!x[1] && !x[2] && !x[3])
			x[0] = PAGE;
		break;
	case FUNC_MEM_SHARE:
	case FUNC_MEM_UNSHARE:
		share = run->hypercall.nr == FUNC_MEM_SHARE;
		if (!x[2] && !x[3])
			x[0] = mem_share(x[1], share);
		break;
	}

	for (i = 0; i < 4; i++)
		set_reg(CORE_REG(regs.regs[i]), x[i]);
}

static void set_attr(int fd, __u32 group, __u64 attr, const void *value)
{
	struct kvm_device_attr device_attr = {
		.group = group,
		.attr = attr,
		.addr = (unsigned long)value,
	};

	if (ioctl(fd, KVM_SET_DEVICE_ATTR, &device_attr))
		err(1, "KVM_SET_DEVICE_ATTR %u %llu", group, attr);
}

static void forward_hypercalls(__u32 func, __u32 nr)
{
	struct kvm_smccc_filter filter = {
		.base = func,
		.nr_functions = nr,
		.action = KVM_SMCCC_FILTER_FWD_TO_USER,
	};

	set_attr(vm_fd, KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER,
		 &filter);
}

/*
 * The inspection
 *
 * The VMM tries to read every page, and then looks in those that it can read
 * for what, by the guest's account, it can or can't find there.  The guest does
 * not run meanwhile.
 */
static bool readable[RAM_SIZE / PAGE];
static char secret[64];

static void try_all_pages(void)
{
	int i, nr_shared = 0, nr_expected = 0, nr_unexpected = 0;

	expect_sigbus(true);
	for (i = 0; i < RAM_SIZE / PAGE; i++) {
		readable[i] = host_can_read((__u64)i * PAGE);
		nr_shared += shared[i];
		nr_expected += readable[i] && shared[i];
		nr_unexpected += readable[i] && !shared[i];
	}
	expect_sigbus(false);
	check_nr("shared pages that the host can read", nr_shared, nr_expected);
	check_nr("private pages that the host can read", 0, nr_unexpected);
}

static const char *find(const char *text)
{
	size_t start, end;
	char *found;

	for (start = 0; start < RAM_SIZE; start = end + PAGE) {
		for (end = start; end < RAM_SIZE && readable[end / PAGE];)
			end += PAGE;
		found = memmem(ram + start, end - start, text, strlen(text));
		if (found)
			return found < ram + POOL_OFF ? "elsewhere" :
							"in the pool";
	}
	return "nowhere";
}

/*
 * The guest's init has a secret in its memory, and reads a text from the disk,
 * of which the disk has written a copy to the pool.  It says so in this order.
 */
static void guest_says(const char *line)
{
	static const char can[] = "the host can see: ";
	static const char cannot[] = "the host cannot see: ";
	const char *text;

	text = strstr(line, can);
	if (text) {
		try_all_pages();
		check("the text, in what the host can read", "in the pool",
		      find(text + strlen(can)));
	}
	text = strstr(line, cannot);
	if (text) {
		snprintf(secret, sizeof(secret), "%s", text + strlen(cannot));
		check("the secret, in what the host can read", "nowhere",
		      find(secret));
	}
}

/*
 * The VM is software-protected: that protects from the VMM's bugs, not from the
 * VMM, which may convert what it likes.  Let it do so when the guest is gone,
 * to see that the secret was there, and would have been found.
 */
static void take_memory_back(void)
{
	if (convert(0, RAM_SIZE, true))
		err(1, "cannot make memory shared");
	memset(readable, true, sizeof(readable));
	check("the secret, in all memory of the guest", "elsewhere",
	      *secret ? find(secret) : "no secret");
}

/*
 * The console: of the UART, a PL011, only what Linux's earlycon uses.  That is
 * the data register, and flags that are 0 when it is ready for more.
 */
static void uart_write(__u64 offset, __u8 c)
{
	static char line[256];
	static size_t len;

	if (offset || c == '\r')
		return;
	if (c != '\n' && len < sizeof(line) - 1) {
		line[len++] = c < ' ' || c > '~' ? '?' : c;
		return;
	}
	line[len] = '\0';
	len = 0;
	printf("guest: %s\n", line);
	guest_says(line);
}

/*
 * The disk: virtio-blk on virtio-mmio, read-only, with one queue.
 *
 * VIRTIO_F_ACCESS_PLATFORM makes the driver use the DMA API, which takes memory
 * for the queue from the pool, and copies data to and from there.  Without, the
 * driver gives the device the address of whatever memory it has.
 */
#define QUEUE_MAX	64

static int disk_fd;
static __u64 disk_sectors, disk_features;
static bool disk_broken;

/* What the driver has set.  Other registers read as 0, or as constants. */
static struct {
	__u32 reg[VIRTIO_MMIO_CONFIG / 4];
	__u32 features[2];
	__u16 next_avail, next_used;
} disk;

#define REG(name)	disk.reg[VIRTIO_MMIO_##name / 4]
#define REG64(name)	(REG(name##_LOW) | (__u64)REG(name##_HIGH) << 32)

static void disk_irq(bool level)
{
	struct kvm_irq_level irq = {
		.irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT |
		       (32 + DISK_SPI),
		.level = level,
	};

	if (ioctl(vm_fd, KVM_IRQ_LINE, &irq))
		err(1, "KVM_IRQ_LINE");
}

/*
 * The driver may be anything, and whatever it says is an address comes through
 * here.  Whether the memory is private turns out when it is touched.  If there
 * were more vCPUs, it could change at any time: copy, then check, then use.
 */
static void *guest_mem(__u64 gpa, __u64 len)
{
	__u64 offset = gpa - RAM;

	if (offset >= RAM_SIZE || len > RAM_SIZE - offset)
		bail_out("no memory", gpa);
	return ram + offset;
}

/*
 * System calls don't raise SIGBUS: given a private page, they fail with EFAULT,
 * or stop short of it.
 */
static bool disk_read(__u64 gpa, __u32 len, off_t pos)
{
	char *data = guest_mem(gpa, len);
	__u32 done = 0;
	ssize_t n;

	while (done < len) {
		n = pread(disk_fd, data + done, len - done, pos + done);
		if (n < 0 && errno == EFAULT)
			bail_out("private memory", gpa + done);
		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}

/*
 * A request is a chain of descriptors: of the header, of buffers for the data,
 * and of the byte that is to tell the result.  Returns how much was written.
 */
static __u32 disk_request(__u32 head)
{
	__u32 num = REG(QUEUE_NUM), n = 0, i;
	struct vring_desc *table, chain[QUEUE_MAX], *last;
	struct virtio_blk_outhdr hdr;
	__u64 done = 0;
	__u8 status;

	table = guest_mem(REG64(QUEUE_DESC), num * sizeof(*table));
	do {
		if (head >= num || n == num)
			bail_out("a broken queue", REG64(QUEUE_DESC));
		last = &chain[n++];
		memcpy(last, &table[head], sizeof(*last));
		head = last->next;
	} while (last->flags & VRING_DESC_F_NEXT);

	if (n < 2 || chain[0].len < sizeof(hdr) || !last->len ||
	    !(last->flags & VRING_DESC_F_WRITE))
		bail_out("a broken request", chain[0].addr);
	memcpy(&hdr, guest_mem(chain[0].addr, sizeof(hdr)), sizeof(hdr));

	status = VIRTIO_BLK_S_OK;
	if (hdr.type != VIRTIO_BLK_T_IN)
		status = VIRTIO_BLK_S_UNSUPP;
	else if (hdr.sector > disk_sectors)
		status = VIRTIO_BLK_S_IOERR;
	for (i = 1; i < n - 1 && status == VIRTIO_BLK_S_OK; i++) {
		if (!(chain[i].flags & VRING_DESC_F_WRITE) ||
		    !disk_read(chain[i].addr, chain[i].len,
			       hdr.sector * 512 + done))
			status = VIRTIO_BLK_S_IOERR;
		done += chain[i].len;
	}
	memcpy(guest_mem(last->addr, 1), &status, 1);
	return status == VIRTIO_BLK_S_OK ? done + 1 : 1;
}

static void disk_serve(void)
{
	__u64 avail_gpa = REG64(QUEUE_AVAIL), used_gpa = REG64(QUEUE_USED);
	__u32 num = REG(QUEUE_NUM);
	struct vring_used_elem *elem;
	struct vring_avail *avail;
	struct vring_used *used;
	__u16 todo, head;

	if (!(REG(STATUS) & VIRTIO_CONFIG_S_DRIVER_OK) || !REG(QUEUE_READY))
		return;

	expect_sigbus(true);
	if (sigsetjmp(back, 0)) {
		expect_sigbus(false);
		disk_broken = true;
		return;
	}
	avail = guest_mem(avail_gpa, sizeof(*avail) + num * sizeof(head));
	used = guest_mem(used_gpa, sizeof(*used) + num * sizeof(*elem));
	if (avail_gpa % 2 || used_gpa % 4)
		bail_out("a broken queue", avail_gpa);

	todo = __atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE) - disk.next_avail;
	if (todo > num)
		bail_out("a broken queue", avail_gpa);
	for (; todo; todo--) {
		head = avail->ring[disk.next_avail++ % num];
		elem = &used->ring[disk.next_used++ % num];
		elem->id = head;
		elem->len = disk_request(head);
		__atomic_store_n(&used->idx, disk.next_used, __ATOMIC_RELEASE);
	}
	expect_sigbus(false);

	REG(INTERRUPT_STATUS) |= VIRTIO_MMIO_INT_VRING;
	disk_irq(true);
}

static __u32 disk_reg_read(__u64 offset)
{
	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return 'v' | 'i' << 8 | 'r' << 16 | 't' << 24;
	case VIRTIO_MMIO_VERSION:
		return 2;
	case VIRTIO_MMIO_DEVICE_ID:
		return VIRTIO_ID_BLOCK;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return REG(DEVICE_FEATURES_SEL) > 1 ? 0 :
		       disk_features >> 32 * REG(DEVICE_FEATURES_SEL);
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return REG(QUEUE_SEL) ? 0 : QUEUE_MAX;
	case VIRTIO_MMIO_CONFIG:
		return disk_sectors;
	case VIRTIO_MMIO_CONFIG + 4:
		return disk_sectors >> 32;
	default:
		return offset < sizeof(disk.reg) ? disk.reg[offset / 4] : 0;
	}
}

static void disk_reg_write(__u64 offset, __u32 value)
{
	switch (offset) {
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (REG(DRIVER_FEATURES_SEL) <= 1)
			disk.features[REG(DRIVER_FEATURES_SEL)] = value;
		break;
	case VIRTIO_MMIO_STATUS:
		if (!value) {
			memset(&disk, 0, sizeof(disk));
			disk_irq(false);
		}
		/* A driver that declines VIRTIO_F_ACCESS_PLATFORM won't do. */
		if (disk.features[0] != (__u32)disk_features ||
		    disk.features[1] != disk_features >> 32)
			value &= ~VIRTIO_CONFIG_S_FEATURES_OK;
		REG(STATUS) = value;
		break;
	case VIRTIO_MMIO_QUEUE_NUM:
		if (value <= QUEUE_MAX && !(value & (value - 1)))
			REG(QUEUE_NUM) = value;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		REG(QUEUE_READY) = value;
		disk.next_avail = 0;
		disk.next_used = 0;
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		disk_serve();
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		REG(INTERRUPT_STATUS) &= ~value;
		disk_irq(REG(INTERRUPT_STATUS));
		break;
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
	case VIRTIO_MMIO_QUEUE_SEL:
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		disk.reg[offset / 4] = value;
		break;
	}
}

static void open_disk(const char *path, bool bypass)
{
	struct stat st;

	disk_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (disk_fd < 0 || fstat(disk_fd, &st))
		err(1, "%s", path);
	disk_sectors = st.st_size / 512;
	disk_features = 1ULL << VIRTIO_BLK_F_RO | 1ULL << VIRTIO_F_VERSION_1;
	if (!bypass)
		disk_features |= 1ULL << VIRTIO_F_ACCESS_PLATFORM;
}

/*
 * The device tree, which tells the guest all that is said above
 *
 * Flattened, it is a header, a sequence of tokens, each with what belongs to
 * it, and the names of properties.  All of it is in big-endian 32-bit words.
 */
enum { FDT_BEGIN_NODE = 1, FDT_END_NODE, FDT_PROP, FDT_END = 9 };

struct fdt_header {
	__be32 magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap;
	__be32 version, last_comp_version, boot_cpuid_phys;
	__be32 size_dt_strings, size_dt_struct;
	__be64 mem_rsvmap[2];		/* empty, i.e. nothing but its end */
};

static char fdt[4096], fdt_names[1024];
static size_t fdt_len = sizeof(struct fdt_header), fdt_names_len;

static void fdt_add(const void *data, size_t len)
{
	if (len + 3 > sizeof(fdt) - fdt_len)
		errx(1, "the device tree is too large");
	memcpy(fdt + fdt_len, data, len);
	fdt_len = (fdt_len + len + 3) & -4;
}

static void fdt_word(__u32 word)
{
	word = htobe32(word);
	fdt_add(&word, sizeof(word));
}

static void fdt_prop(const char *name, const void *value, size_t len)
{
	fdt_word(FDT_PROP);
	fdt_word(len);
	fdt_word(fdt_names_len);
	fdt_add(value, len);
	if (strlen(name) >= sizeof(fdt_names) - fdt_names_len)
		errx(1, "the device tree has too many properties");
	fdt_names_len += sprintf(fdt_names + fdt_names_len, "%s", name) + 1;
}

static void fdt_string(const char *name, const char *value)
{
	fdt_prop(name, value, strlen(value) + 1);
}

static void fdt_array(const char *name, int n, const __u32 *values)
{
	__u32 cells[16];
	int i;

	for (i = 0; i < n; i++)
		cells[i] = htobe32(values[i]);
	fdt_prop(name, cells, n * sizeof(*cells));
}

#define fdt_cells(name, ...)						\
	fdt_array(name, sizeof((__u32[]){ __VA_ARGS__ }) / sizeof(__u32), \
		  (__u32[]){ __VA_ARGS__ })

/* A property that has no value is true if it is there. */
static void fdt_true(const char *name)
{
	fdt_prop(name, "", 0);
}

/* A node of the tree; all up to its fdt_end() belongs to it. */
static void fdt_begin(const char *name, const char *compatible)
{
	fdt_word(FDT_BEGIN_NODE);
	fdt_add(name, strlen(name) + 1);
	if (compatible)
		fdt_string("compatible", compatible);
}

/* One whose nodes have addresses and sizes of so many words. */
static void fdt_begin_bus(const char *name, const char *compatible,
			  int address_cells, int size_cells)
{
	fdt_begin(name, compatible);
	fdt_cells("#address-cells", address_cells);
	fdt_cells("#size-cells", size_cells);
}

static void fdt_end(void)
{
	fdt_word(FDT_END_NODE);
}

static void fdt_finish(void)
{
	size_t end = fdt_len;
	struct fdt_header header = {
		.magic = htobe32(0xd00dfeed),
		.version = htobe32(17),
		.last_comp_version = htobe32(16),
		.off_mem_rsvmap = htobe32(offsetof(struct fdt_header,
						    mem_rsvmap)),
		.off_dt_struct = htobe32(sizeof(header)),
		.size_dt_struct = htobe32(end - sizeof(header)),
		.off_dt_strings = htobe32(end),
		.size_dt_strings = htobe32(fdt_names_len),
	};

	fdt_add(fdt_names, fdt_names_len);
	header.totalsize = htobe32(fdt_len);
	memcpy(fdt, &header, sizeof(header));
}

static void describe_machine(size_t initrd_size)
{
	enum { GIC = 1, POOL };		/* phandles, to refer to nodes */

	fdt_begin_bus("", "linux,dummy-virt", 1, 1);
	fdt_cells("interrupt-parent", GIC);

	fdt_begin("chosen", NULL);
	fdt_string("bootargs", BOOTARGS);
	fdt_cells("linux,initrd-start", RAM + INITRD_OFF);
	fdt_cells("linux,initrd-end", RAM + INITRD_OFF + initrd_size);
	fdt_end();

	fdt_begin("memory", NULL);
	fdt_string("device_type", "memory");
	fdt_cells("reg", RAM, RAM_SIZE);
	fdt_end();

	/* The guest shares all of the pool when it finds the disk. */
	fdt_begin_bus("reserved-memory", NULL, 1, 1);
	fdt_true("ranges");
	fdt_begin("pool", "restricted-dma-pool");
	fdt_cells("reg", RAM + POOL_OFF, POOL_SIZE);
	fdt_cells("phandle", POOL);
	fdt_end();
	fdt_end();

	fdt_begin_bus("cpus", NULL, 1, 0);
	fdt_begin("cpu", "arm,armv8");
	fdt_string("device_type", "cpu");
	fdt_string("enable-method", "psci");
	fdt_cells("reg", 0);
	fdt_end();
	fdt_end();

	fdt_begin("psci", "arm,psci-1.0");
	fdt_string("method", "hvc");
	fdt_end();

	fdt_begin("interrupt-controller", "arm,gic-v3");
	fdt_true("interrupt-controller");
	fdt_cells("#interrupt-cells", 3);
	fdt_cells("reg", GIC_DIST, 0x10000, GIC_REDIST, 0x20000);
	fdt_cells("phandle", GIC);
	fdt_end();

	/* Interrupts: private (1) or shared (0), number, active high (4) */
	fdt_begin("timer", "arm,armv8-timer");
	fdt_cells("interrupts", 1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4);
	fdt_true("always-on");
	fdt_end();

	fdt_begin("disk", "virtio,mmio");
	fdt_cells("reg", DISK, PAGE);
	fdt_cells("interrupts", 0, DISK_SPI, 4);
	fdt_true("dma-coherent");
	fdt_cells("memory-region", POOL);
	fdt_end();

	fdt_end();
	fdt_word(FDT_END);
	fdt_finish();
}

/*
 * The VM.  Its addresses have 32 bits, more than it needs, and no more than any
 * CPU offers.  Without GUEST_MEMFD_FLAG_INIT_SHARED, its memory starts private.
 */
static void create_vm(int kvm_fd)
{
	struct kvm_create_guest_memfd gmem = {
		.size = RAM_SIZE,
		.flags = GUEST_MEMFD_FLAG_MMAP,
	};
	struct kvm_userspace_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = RAM,
		.memory_size = RAM_SIZE,
	};

	if (sysconf(_SC_PAGESIZE) != PAGE)
		errx(1, "this is for pages of 4 KiB, use a kernel that has them");
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_VM_TYPE_ARM_SW_PROTECTED |
					     KVM_VM_TYPE_ARM_IPA_SIZE(32));
	if (vm_fd < 0)
		err(1, "no software-protected VMs, use a kernel with KVM_SW_PROTECTED_VM");

	gmem_fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &gmem);
	if (gmem_fd < 0)
		err(1, "KVM_CREATE_GUEST_MEMFD");
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   gmem_fd, 0);
	if (ram == MAP_FAILED)
		err(1, "mmap of the guest_memfd");

	slot.guest_memfd = gmem_fd;
	slot.userspace_addr = (unsigned long)ram;
	if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot))
		err(1, "KVM_SET_USER_MEMORY_REGION2");

	forward_hypercalls(FUNC_FEATURES, 1);
	forward_hypercalls(FUNC_HYP_MEMINFO, 3);
}

/* It starts where the kernel is, with the address of the device tree in x0. */
static void create_vcpu(int kvm_fd)
{
	int run_size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_vcpu_init init;

	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	if (vcpu_fd < 0)
		err(1, "KVM_CREATE_VCPU");
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   vcpu_fd, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");

	if (ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, &init))
		err(1, "KVM_ARM_PREFERRED_TARGET");
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
	if (ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, &init))
		err(1, "KVM_ARM_VCPU_INIT");
	set_reg(CORE_REG(regs.pc), RAM + KERNEL_OFF);
	set_reg(CORE_REG(regs.regs[0]), RAM + FDT_OFF);
}

static void create_gic(void)
{
	struct kvm_create_device gic = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	__u64 dist = GIC_DIST, redist = GIC_REDIST;

	if (ioctl(vm_fd, KVM_CREATE_DEVICE, &gic))
		err(1, "no GICv3, use a machine that has one");
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_ADDR,
		 KVM_VGIC_V3_ADDR_TYPE_DIST, &dist);
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_ADDR,
		 KVM_VGIC_V3_ADDR_TYPE_REDIST, &redist);
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_CTRL,
		 KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
}

static const char *load_file(const char *path, __u64 offset, __u64 end,
			     size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	char *data;

	if (fd < 0 || fstat(fd, &st))
		err(1, "%s", path);
	if ((__u64)st.st_size > end - offset)
		errx(1, "%s is too large", path);
	data = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		err(1, "%s", path);
	load(offset, data, st.st_size);
	close(fd);
	*size = st.st_size;
	return data;
}

/* Documentation/arch/arm64/booting.rst tells what an Image looks like. */
static void load_guest(const char *image_path, const char *initrd_path)
{
	const char *image;
	size_t size;

	image = load_file(image_path, KERNEL_OFF, INITRD_OFF, &size);
	if (size < 64 || memcmp(image + 56, "ARM\x64", 4))
		errx(1, "%s is not an arm64 Image", image_path);
	load_file(initrd_path, INITRD_OFF, FDT_OFF, &size);
	describe_machine(size);
	load(FDT_OFF, fdt, fdt_len);
}

static void mmio(__u64 gpa, __u8 *data, __u32 len, bool is_write)
{
	__u32 value = 0;

	if (is_write)
		memcpy(&value, data, len < 4 ? len : 4);

	if (is_write && gpa - UART < PAGE)
		uart_write(gpa - UART, value);
	if (is_write && gpa - DISK < PAGE)
		disk_reg_write(gpa - DISK, value);
	if (!is_write && gpa - DISK < PAGE)
		value = disk_reg_read(gpa - DISK);

	if (!is_write) {
		memset(data, 0, len);
		memcpy(data, &value, len < 4 ? len : 4);
	}
}

/* Until the guest turns itself off, or the disk can't go on. */
static void run_guest(void)
{
	while (!disk_broken) {
		if (ioctl(vcpu_fd, KVM_RUN, 0)) {
			if (errno == EINTR)
				continue;
			err(1, "KVM_RUN");
		}
		switch (run->exit_reason) {
		case KVM_EXIT_MMIO:
			mmio(run->mmio.phys_addr, run->mmio.data, run->mmio.len,
			     run->mmio.is_write);
			break;
		case KVM_EXIT_HYPERCALL:
			hypercall();
			break;
		case KVM_EXIT_SYSTEM_EVENT:
			if (run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
				return;
			errx(1, "the guest crashed or wants to reboot, event %u",
			     run->system_event.type);
		default:
			errx(1, "unexpected exit from the guest, reason %u",
			     run->exit_reason);
		}
	}
	printf("host: the disk is pointed at %s, at %#llx, and gives up\n",
	       trouble.what, trouble.gpa);
}

int main(int argc, char **argv)
{
	bool bypass = argc > 1 && !strcmp(argv[1], "--bypass");
	int kvm_fd, i, nr_shared = 0;

	if (argc != 4 + bypass)
		errx(1, "usage: %s [--bypass] IMAGE INITRD DISK", argv[0]);
	argv += bypass;
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		err(1, "cannot open /dev/kvm, load KVM or become a user who may use it");

	setvbuf(stdout, NULL, _IOLBF, 0);
	create_vm(kvm_fd);
	create_vcpu(kvm_fd);
	create_gic();
	open_disk(argv[3], bypass);
	load_guest(argv[1], argv[2]);
	try_all_pages();
	run_guest();

	for (i = 0; i < RAM_SIZE / PAGE; i++)
		nr_shared += shared[i];
	printf("host: the guest made %d calls to share pages, and %d to unshare them\n",
	       nr_shares, nr_unshares);
	check("memory that the disk is pointed at",
	      bypass ? "private memory" : "shared memory",
	      disk_broken ? trouble.what : "shared memory");
	if (!disk_broken)
		take_memory_back();

	printf("%d of %d as expected%s\n", nr_checks - nr_wrong, nr_checks,
	       nr_wrong ? ", the lines marked WRONG are not" : "");
	printf("%d pages were shared, %d private\n", nr_shared,
	       RAM_SIZE / PAGE - nr_shared);
	return nr_wrong ? 1 : 0;
}
