/* SPDX-License-Identifier: GPL-2.0 */
/* What tools/lib/slab.c counts, but no header declares. */
extern int kmalloc_nr_allocated;
