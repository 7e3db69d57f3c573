/* SPDX-License-Identifier: GPL-2.0 */
/* What the record allocates with; counted, and failing on demand. */
#include <stdlib.h>

#define SLAB_ACCOUNT	1
#define GFP_KERNEL	1

struct kmem_cache {
	size_t size;
	long nr_allocated;
	bool fails;
};

#define KMEM_CACHE(name, flags)		__kmem_cache(sizeof(struct name), flags)

static inline struct kmem_cache *__kmem_cache(size_t size, int flags)
{
	struct kmem_cache *cache = calloc(1, sizeof(*cache));

	/* A guest decides how many there are. */
	if (flags != SLAB_ACCOUNT)
		abort();
	cache->size = size;
	return cache;
}

static inline void *kmem_cache_alloc(struct kmem_cache *cache, int gfp)
{
	void *p = cache->fails ? NULL : malloc(cache->size);

	cache->nr_allocated += !!p;
	return p;
}

static inline void kmem_cache_free(struct kmem_cache *cache, void *p)
{
	cache->nr_allocated--;
	free(p);
}

static inline void kmem_cache_destroy(struct kmem_cache *cache)
{
	free(cache);
}
