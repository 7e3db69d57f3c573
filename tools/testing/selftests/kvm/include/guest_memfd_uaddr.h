/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests have in common that have something else than the file mapped at
 * userspace_addr of a memslot whose memory is guest_memfd's.
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_UADDR_H
#define SELFTEST_KVM_GUEST_MEMFD_UADDR_H

#include <sys/mman.h>

#include "guest_memfd_util.h"

enum uaddr {
	UADDR_FILE,
	UADDR_OTHER_MEMORY,
	UADDR_OTHER_GMEM,
	UADDR_NOTHING,
};

/* Contents of what isn't the guest's. */
#define ALIEN_TAG	0x4141414141410000ul

/* Where nothing is mapped, nor will be unless asked for. */
#define NOWHERE		((u8 *)0x1000000000ul)

struct uaddr_map {
	u8 *mem;
	size_t size;
	/* There is memory that isn't the guest's. */
	bool is_alien;
	struct kvm_vm *other_vm;
	int other_fd;
};

/* Each page begins with the tag, plus the number of the page. */
static inline void fill(u8 *mem, size_t size, u64 tag)
{
	size_t i;

	for (i = 0; i < size / getpagesize(); i++)
		*(u64 *)(mem + i * getpagesize()) = tag + i;
}

static inline void expect(u8 *mem, size_t size, u64 tag, const char *what)
{
	size_t i;
	u64 val;

	for (i = 0; i < size / getpagesize(); i++) {
		val = READ_ONCE(*(u64 *)(mem + i * getpagesize()));
		TEST_ASSERT(val == tag + i, "Page %lu of %s: 0x%lx, not 0x%lx", i,
			    what, val, tag + i);
	}
}

/* Anonymous memory if there is no file. */
static inline u8 *map_at(u8 *addr, size_t size, int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	u8 *mem = mmap(addr, size, PROT_READ | PROT_WRITE,
		       flags | (addr ? MAP_FIXED : 0), fd, 0);

	TEST_ASSERT(mem != MAP_FAILED, "mmap() failed");
	return mem;
}

static inline void uaddr_init(struct uaddr_map *map, enum uaddr uaddr, size_t size,
			      int fd)
{
	*map = (struct uaddr_map) { .size = size, .other_fd = -1 };

	switch (uaddr) {
	case UADDR_FILE:
		map->mem = map_at(NULL, size, fd);
		return;
	case UADDR_NOTHING:
		map->mem = NOWHERE;
		return;
	case UADDR_OTHER_GMEM:
		map->other_vm = vm_create_barebones();
		map->other_fd = vm_create_guest_memfd(map->other_vm, size,
						      MMAP_SHARED);
		fallthrough;
	case UADDR_OTHER_MEMORY:
		map->mem = map_at(NULL, size, map->other_fd);
		map->is_alien = true;
		fill(map->mem, size, ALIEN_TAG);
	}
}

/* Nobody has written to what isn't the guest's. */
static inline void uaddr_expect_untouched(struct uaddr_map *map)
{
	u64 *mem = (u64 *)map->mem;
	size_t i;

	if (!map->is_alien)
		return;

	expect(map->mem, map->size, ALIEN_TAG, "what isn't the guest's");
	for (i = 0; i < map->size / sizeof(u64); i++)
		TEST_ASSERT(!mem[i] || !(i * sizeof(u64) % getpagesize()),
			    "Offset 0x%lx of what isn't the guest's: 0x%lx",
			    i * sizeof(u64), mem[i]);
}

/* What is mapped is up to the caller. */
static inline void uaddr_free(struct uaddr_map *map)
{
	if (!map->other_vm)
		return;

	kvm_close(map->other_fd);
	kvm_vm_free(map->other_vm);
}

static inline void convert_page(int fd, u64 offset, u64 attributes)
{
	u64 error_offset;

	TEST_ASSERT_EQ(__try_convert(fd, offset, getpagesize(), attributes,
				     &error_offset), 0);
}

/* Other kernels go by userspace_addr in places. */
static inline void require_gmem_attributes(void)
{
	__TEST_REQUIRE(has_vm_scoped() || kvm_has_gmem_attributes(),
		       "KVM doesn't support attributes tracked in guest_memfd");
}

#endif /* SELFTEST_KVM_GUEST_MEMFD_UADDR_H */
