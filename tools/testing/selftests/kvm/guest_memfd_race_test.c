// SPDX-License-Identifier: GPL-2.0-only
/*
 * Races between conversions of guest_memfd memory between private and shared,
 * and everything else that gets, has, or loses access to the same memory.
 *
 * vCPUs, threads of the VMM and other processes do random things to the pages of
 * one file, without waiting for each other.  Nobody knows in what order things
 * happen, but everybody can tell whether what happens is possible, because who
 * is about to change something says so beforehand, and again when it is done:
 *
 *  - Each writer has one word in each page, and writes ever increasing numbers
 *    to it.  A word that is older than what was complete before it was read, or
 *    that is newer than what was begun, or that was punched out before, or that
 *    belongs to another writer or page, is a lost, stale or misplaced one.
 *  - A vCPU that wants to keep a secret locks pages, asks for them to become
 *    private, marks what it writes, and overwrites all of it before it unlocks
 *    the pages.  Only who holds the locks may ask for pages to become shared,
 *    everybody may do anything else to them, and nobody but vCPUs may ever see
 *    the mark, or change a word.
 *  - All conversions of a page are counted when they begin, and when they end.
 *    A fault in a page that was shared all the time is an error, and so is
 *    access to a page that was private all the time.
 *  - Operations that need a reference to a page are counted, too.  EAGAIN without
 *    anybody who had a reference is an error, and any other errno is one anyway.
 *
 * What is verified is what KVM promises to users of KVM_SET_MEMORY_ATTRIBUTES2,
 * numbered as in guest_memfd_conversions_test, when there are races:
 *
 *  1. All or nothing.  A call that fails has changed nothing.
 *  2. No window.  There is no moment at which a page is private and a host
 *     process, or anything that holds a reference to the page on its behalf,
 *     can still reach it.
 *  3. No stale guest mapping.  A vCPU fault that races with a conversion never
 *     installs a mapping that contradicts the state after the conversion.
 *  4. In place.  Contents stay, in both directions, however often.
 *  5. Nothing leaks.  A page is zero the first time anyone sees it.
 *  6. Host access to a private page is SIGBUS, or EFAULT through the kernel, in
 *     every process that maps it, also after fork() and mremap().
 *  7. References make to-private fail, while they are held, but not those that
 *     the kernel itself holds for a moment.
 *  9. Punching a hole drops contents and keeps state.
 * 10. Memslots come and go, state and mappings stay right.
 * 12. Equal neighbours merge in the record of what is private.
 * 13. A poisoned page keeps being reported as poisoned.
 * 17. Every EAGAIN has a reason.
 */
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <asm/barrier.h>
#include <linux/falloc.h>
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT		10
#define TEST_GPA		((gpa_t)SZ_4G)

/* What the host and the guest tell each other is ordinary memory. */
#define SHARED_SLOT		9
#define SHARED_GPA		(2 * (gpa_t)SZ_4G)

#define NR_PAGES		64
#define NR_SLOTS		4
#define PAGES_PER_SLOT		(NR_PAGES / NR_SLOTS)

/* Each poisoned page is lost to the host for good. */
#define NR_POISONABLE		2
#define FIRST_POISONABLE	(NR_PAGES - NR_POISONABLE)
#define MAX_POISONS		16

#define MAX_WRITERS		16
#define MAX_BACKENDS		4

/* How many operations it takes for each of them to occur, as a rule. */
#define MIN_OPS			5000

/* How many times as many it may take, as an exception. */
#define MAX_FACTOR		4

static size_t page_size;

enum operation {
	GUEST_READ,
	GUEST_WRITE,
	GUEST_SECRET,
	GUEST_TO_PRIVATE,
	GUEST_TO_SHARED,
	READ,
	WRITE,
	COPY_FROM,
	COPY_TO,
	READ_REMOTE,
	WRITE_REMOTE,
	PEEK,
	POKE,
	POPULATE,
	MREMAP,
	TO_PRIVATE,
	TO_SHARED,
	DENIED,
	PUNCH,
	ALLOCATE,
	SLOT,
	PREFAULT,
	FILE_LIFE,
	DONTNEED,
	REMAP,
	FORK,
	COMPACT,
	PIN,
	POISON,
	INFO,
	PASS,
	RECEIVE,
	NR_OPS,
};

static const char * const op_names[NR_OPS] = {
	[GUEST_READ]	= "guest read",
	[GUEST_WRITE]	= "guest write",
	[GUEST_SECRET]	= "guest secret",
	[GUEST_TO_PRIVATE] = "guest to private",
	[GUEST_TO_SHARED] = "guest to shared",
	[READ]		= "read",
	[WRITE]		= "write",
	[COPY_FROM]	= "copy from",
	[COPY_TO]	= "copy to",
	[READ_REMOTE]	= "remote read",
	[WRITE_REMOTE]	= "remote write",
	[PEEK]		= "peek",
	[POKE]		= "poke",
	[POPULATE]	= "populate",
	[MREMAP]	= "mremap",
	[TO_PRIVATE]	= "to private",
	[TO_SHARED]	= "to shared",
	[DENIED]	= "denied",
	[PUNCH]		= "punch",
	[ALLOCATE]	= "allocate",
	[SLOT]		= "memslot",
	[PREFAULT]	= "pre-fault",
	[FILE_LIFE]	= "short-lived file",
	[DONTNEED]	= "dontneed",
	[REMAP]		= "remap",
	[FORK]		= "fork",
	[COMPACT]	= "compact",
	[PIN]		= "pin",
	[POISON]	= "poison",
	[INFO]		= "fdinfo",
	[PASS]		= "pass fd",
	[RECEIVE]	= "receive fd",
};

enum outcome {
	OK,
	/* SIGBUS, EFAULT and the like */
	FAULT,
	/* Somebody else has the lock, or whatever else is needed. */
	BUSY,
	/* EAGAIN */
	AGAIN,
	NR_OUTCOMES,
};

/* A number that no counter reaches. */
#define NEVER			(~0u)

/*
 * Conversions of a page to private, or to shared.  The page is known to be in
 * that state if @at is the number of conversions to the opposite that were begun.
 */
struct state {
	u32 begun;
	u32 done;
	u32 at;
};

/* What a writer wrote to its word in a page. */
struct word {
	u64 begun;
	/* Also says which holes had been punched when it began, see DONE(). */
	u64 done;
	/* The last one that was punched out. */
	u64 dropped;
};

struct page {
	u32 lock;
	struct state to[2];
	u32 punches_begun;
	u32 punches_done;
	u32 refs_begun;
	u32 refs_done;
	u32 poisons_begun;
	u32 poisons_over;
	/* The page is known to be poisoned while this is punches_begun + 1. */
	u32 poisoned_at;
	struct word words[MAX_WRITERS];
};

struct slot {
	u32 lock;
	u32 begun;
	u32 done;
};

/* All that vCPUs, threads and processes have to know about each other. */
struct shared {
	u32 seed;
	u32 nr_vcpus;
	u32 nr_writers;
	u64 nr_ops;
	u64 ops;
	bool stop;

	/* Threads of the VMM that did not finish yet. */
	u32 nr_running;

	/* Conversions, and changes to memslots. */
	u32 changes_begun;
	u32 changes_done;

	u32 nr_poisons;

	/* The vCPU has touched what is not in a memslot. */
	bool mmio[MAX_WRITERS];

	/* The backend wants a file descriptor. */
	bool wants_fd[MAX_BACKENDS];

	u64 counts[NR_OPS][NR_OUTCOMES];
	struct page pages[NR_PAGES];
	struct slot slots[NR_SLOTS];
};

static struct shared *shared;

static void count(enum operation op, enum outcome outcome)
{
	__atomic_add_fetch(&shared->counts[op][outcome], 1, __ATOMIC_RELAXED);
}

/* Order what is known about memory before, or after, what happens to it. */
static void full_barrier(void)
{
	/* All of them pair with each other. */
	smp_mb();
}

static u32 inc(u32 *counter)
{
	u32 val = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);

	/* What follows on other variables must not come first. */
	full_barrier();
	return val;
}

/* Returns the number of changes that were begun if all are done, else NEVER. */
static u32 quiet(u32 *begun, u32 *done)
{
	u32 nr = READ_ONCE(*done);

	full_barrier();
	return READ_ONCE(*begun) == nr ? nr : NEVER;
}

static bool more_ops(void)
{
	return !READ_ONCE(shared->stop) &&
	       __atomic_fetch_add(&shared->ops, 1, __ATOMIC_RELAXED) < shared->nr_ops;
}

/* Nobody ever waits for a lock. */
static bool try_lock(u32 *lock)
{
	return !READ_ONCE(*lock) && !__atomic_exchange_n(lock, 1, __ATOMIC_SEQ_CST);
}

static void unlock(u32 *lock)
{
	__atomic_store_n(lock, 0, __ATOMIC_SEQ_CST);
}

static void unlock_pages(u32 first, u32 nr)
{
	while (nr--)
		unlock(&shared->pages[first + nr].lock);
}

static bool try_lock_pages(u32 first, u32 nr)
{
	u32 i;

	for (i = 0; i < nr; i++) {
		if (!try_lock(&shared->pages[first + i].lock)) {
			unlock_pages(first, i);
			return false;
		}
	}
	return true;
}

static struct kvm_random_state new_rng(u32 id)
{
	return new_kvm_random_state((shared->seed + id * 7919ull) % (INT32_MAX - 1) + 1);
}

/* A random number less than @nr. */
static u32 pick(struct kvm_random_state *rng, u32 nr)
{
	return kvm_random_u32(rng) % nr;
}

/* Mostly small, sometimes large ranges. */
static void pick_range(struct kvm_random_state *rng, u32 *first, u32 *nr)
{
	switch (pick(rng, 8)) {
	case 0 ... 3:
		*nr = 1;
		break;
	case 4 ... 6:
		*nr = 1 + pick(rng, 8);
		break;
	default:
		*nr = 1 + pick(rng, NR_PAGES);
		break;
	}
	*first = pick(rng, NR_PAGES - *nr + 1);
}

/*
 * Words: whose, in which page, and its number.  There is a word in each page that
 * belongs to nobody, after those that belong to writers.
 */
#define SECRET			BIT_ULL(63)
#define NR_BITS			40
#define NR_MASK			GENMASK_ULL(NR_BITS - 1, 0)

#define DONE(nr, punches)	((nr) | (u64)(punches) << NR_BITS)
#define DONE_NR(done)		((done) & NR_MASK)
#define DONE_PUNCHES(done)	((u32)((done) >> NR_BITS))
#define PUNCHES_MASK		GENMASK(63 - NR_BITS, 0)

static u64 make_word(u32 writer, u32 page, u64 nr)
{
	return (u64)(writer + 1) << 56 | (u64)page << NR_BITS | nr;
}

static u64 *word_addr(void *mem, u32 writer, u32 page)
{
	size_t stride = page_size / sizeof(u64) / (MAX_WRITERS + 1);

	return (u64 *)mem + writer * stride + page % stride;
}

/* Returns the word to write. */
static u64 begin_write(u32 writer, u32 page, u64 *done)
{
	struct page *p = &shared->pages[page];
	struct word *word = &p->words[writer];
	u64 nr = word->begun + 1;

	WRITE_ONCE(word->begun, nr);
	*done = DONE(nr, quiet(&p->punches_begun, &p->punches_done) & PUNCHES_MASK);
	full_barrier();
	return make_word(writer, page, nr);
}

static void end_write(u32 writer, u32 page, u64 done)
{
	full_barrier();
	WRITE_ONCE(shared->pages[page].words[writer].done, done);
}

/* What was known about a page before it was accessed, and what is wrong with it. */
struct look {
	u32 page;
	u32 at[2];
	u32 poisons_over;
	u32 poisoned_at;
	u64 done[MAX_WRITERS];
	u64 dropped[MAX_WRITERS];

	const char *error;
	u32 writer;
	u64 word;
};

static void look_at(struct look *look, u32 page)
{
	struct page *p = &shared->pages[page];
	u32 i;

	look->page = page;
	look->error = NULL;
	look->writer = 0;
	look->at[0] = READ_ONCE(p->to[0].at);
	look->at[1] = READ_ONCE(p->to[1].at);
	look->poisons_over = READ_ONCE(p->poisons_over);
	look->poisoned_at = READ_ONCE(p->poisoned_at);
	for (i = 0; i < shared->nr_writers; i++) {
		look->done[i] = READ_ONCE(p->words[i].done);
		look->dropped[i] = READ_ONCE(p->words[i].dropped);
	}
	full_barrier();
}

static const char *check_word(struct look *look, u32 writer, u64 word, bool host)
{
	struct page *p = &shared->pages[look->page];
	u64 done = look->done[writer];
	u64 nr = word & NR_MASK;

	if (word && (word & ~(NR_MASK | SECRET)) != make_word(writer, look->page, 0))
		return "misplaced";
	if (host && word & SECRET)
		return "a secret";
	if (nr > READ_ONCE(p->words[writer].begun))
		return "not written yet";
	if (nr && nr <= look->dropped[writer])
		return "from before a hole was punched";
	if (nr < DONE_NR(done) &&
	    DONE_PUNCHES(done) == (READ_ONCE(p->punches_begun) & PUNCHES_MASK))
		return nr ? "stale" : "lost";
	return NULL;
}

/* Promises 4, 5 and 9. */
static bool check_words(struct look *look, u64 *words, bool host)
{
	u32 i;

	full_barrier();
	for (i = 0; i < shared->nr_writers && !look->error; i++) {
		look->writer = i;
		look->word = words[i];
		look->error = check_word(look, i, words[i], host);
	}

	if (!look->error && words[i]) {
		look->writer = i;
		look->word = words[i];
		look->error = "nobody's";
	}
	return !look->error;
}

/* Promise 13 */
static bool was_poisoned(struct look *look)
{
	full_barrier();
	return look->poisoned_at == READ_ONCE(shared->pages[look->page].punches_begun) + 1;
}

/*
 * The guest
 */

#ifdef __aarch64__
/* Plain loads and stores, which KVM can decode if there is no memslot. */
#define guest_load(addr)	readq_relaxed(addr)
#define guest_store(addr, val)	writeq_relaxed(val, addr)
#else
#define guest_load(addr)	READ_ONCE(*(addr))
#define guest_store(addr, val)	WRITE_ONCE(*(addr), val)
#endif

/* If there was no memslot, then nothing was read, or written. */
#define until_in_memslot(id, access)					\
do {									\
	bool *__mmio = &shared->mmio[id];				\
									\
	do {								\
		WRITE_ONCE(*__mmio, false);				\
		access;							\
	} while (READ_ONCE(*__mmio));					\
} while (0)

static u64 *guest_word(u32 writer, u32 page)
{
	return word_addr((void *)(TEST_GPA + page * page_size), writer, page);
}

static void guest_write(u32 id, u32 page, u64 mark)
{
	u64 done, word = begin_write(id, page, &done) | mark;
	struct look look;

	look_at(&look, page);
	until_in_memslot(id, guest_store(guest_word(id, page), word));
	__GUEST_ASSERT(!was_poisoned(&look), "vCPU %u wrote to poisoned page %u",
		       id, page);
	end_write(id, page, done);
}

static void guest_read(u32 id, u32 page, u64 *words)
{
	struct look look;
	u32 i;

	look_at(&look, page);
	for (i = 0; i <= shared->nr_writers; i++)
		until_in_memslot(id, words[i] = guest_load(guest_word(i, page)));

	__GUEST_ASSERT(!was_poisoned(&look), "vCPU %u read poisoned page %u",
		       id, page);
	__GUEST_ASSERT(check_words(&look, words, false),
		       "vCPU %u, page %u: writer %u's word 0x%lx is %s, after 0x%lx and hole 0x%lx",
		       id, page, look.writer, look.word, look.error,
		       look.done[look.writer], look.dropped[look.writer]);
}

static void guest_convert(u32 first, u32 nr, bool private)
{
	arch_guest_convert(TEST_GPA + first * page_size, nr * page_size, page_size,
			   private);
}

#define MAX_SECRETS		3

static void guest_keep_secret(u32 id, u32 page, u32 punches, u64 *before)
{
	u64 words[MAX_WRITERS + 1];
	u32 i;

	guest_read(id, page, words);

	/* Promise 2: memory that is private changes by nothing but holes. */
	for (i = shared->nr_vcpus; i < shared->nr_writers; i++)
		__GUEST_ASSERT(words[i] == before[i] ||
			       punches != READ_ONCE(shared->pages[page].punches_begun),
			       "vCPU %u, page %u: writer %u wrote 0x%lx over 0x%lx in private memory",
			       id, page, i, words[i], before[i]);

	/* Promise 4: nothing but a hole makes a vCPU forget its secret. */
	__GUEST_ASSERT(words[id] & SECRET ||
		       punches != READ_ONCE(shared->pages[page].punches_begun),
		       "vCPU %u, page %u: the secret became 0x%lx", id, page, words[id]);
}

static enum outcome guest_secret(u32 id, struct kvm_random_state *rng)
{
	u64 words[MAX_SECRETS][MAX_WRITERS + 1];
	u32 punches[MAX_SECRETS];
	u32 i, j, nr = 1 + pick(rng, MAX_SECRETS);
	u32 first = pick(rng, NR_PAGES - nr + 1);

	if (!try_lock_pages(first, nr))
		return BUSY;

	guest_convert(first, nr, true);

	for (i = 0; i < nr; i++) {
		struct page *p = &shared->pages[first + i];

		punches[i] = quiet(&p->punches_begun, &p->punches_done);
		full_barrier();
		guest_read(id, first + i, words[i]);
		guest_write(id, first + i, SECRET);
	}

	for (j = pick(rng, 4) + 1; j; j--) {
		for (i = 0; i < nr; i++)
			guest_keep_secret(id, first + i, punches[i], words[i]);
		cpu_relax();
	}

	for (i = 0; i < nr; i++)
		guest_write(id, first + i, 0);

	if (kvm_random_bool(rng))
		guest_convert(first, nr, false);

	unlock_pages(first, nr);
	return OK;
}

static enum outcome guest_to_shared(struct kvm_random_state *rng)
{
	u32 first, nr;

	pick_range(rng, &first, &nr);
	if (!try_lock_pages(first, nr))
		return BUSY;

	guest_convert(first, nr, false);
	unlock_pages(first, nr);
	return OK;
}

static void guest_to_private(struct kvm_random_state *rng)
{
	u32 first, nr;

	pick_range(rng, &first, &nr);
	guest_convert(first, nr, true);
}

static void guest_code(u32 id)
{
	struct kvm_random_state rng = new_rng(id);
	u64 words[MAX_WRITERS + 1];

	while (more_ops()) {
		switch (pick(&rng, 20)) {
		case 0 ... 5:
			guest_read(id, pick(&rng, NR_PAGES), words);
			count(GUEST_READ, OK);
			break;
		case 6 ... 11:
			guest_write(id, pick(&rng, NR_PAGES), 0);
			count(GUEST_WRITE, OK);
			break;
		case 12 ... 16:
			count(GUEST_SECRET, guest_secret(id, &rng));
			break;
		case 17:
			guest_to_private(&rng);
			count(GUEST_TO_PRIVATE, OK);
			break;
		default:
			count(GUEST_TO_SHARED, guest_to_shared(&rng));
			break;
		}
	}
	GUEST_DONE();
}

/*
 * The host: threads of the VMM, and other processes
 */

/* A mapping of the file, by now there may be poison in it for good. */
struct mapping {
	u8 *mem;
	u32 poisons[NR_POISONABLE];
};

struct worker {
	u32 id;
	bool is_vmm;
	struct kvm_random_state rng;

	int fd;
	struct mapping own;
	/* Of the VMM's memory, as debuggers see it. */
	int mem_fd;
	/* Where to copy to, and from. */
	int scratch_fd;
	u8 *scratch;
	int pipe[2];

	/* Backends get file descriptors from here. */
	u32 backend;
	int sock;
};

static struct kvm_vm *vm;
static int gmem_fd;
static pid_t vmm_pid;

/* A mapping that is never unmapped, and in all processes. */
static struct mapping common;

/* A vCPU that does not run. */
static struct kvm_vcpu *spare_vcpu;

static int backend_socks[MAX_BACKENDS];
static u32 nr_vcpus = 3, nr_threads = 3, nr_backends = 2;

static u32 op_weight(struct worker *w, enum operation op);

static size_t file_size(void)
{
	return NR_PAGES * page_size;
}

/*
 * A fault says so by the mapping's address, errno by the kernel's: make both the
 * same thing.
 */
static __thread sigjmp_buf fault_jmpbuf;
static __thread bool fault_is_expected;
static __thread int fault_code;

static void sigbus_handler(int signum, siginfo_t *info, void *ucontext)
{
	TEST_ASSERT(READ_ONCE(fault_is_expected), "SIGBUS out of nowhere, code %d, address %p",
		    info->si_code, info->si_addr);
	WRITE_ONCE(fault_is_expected, false);
	WRITE_ONCE(fault_code, info->si_code);
	siglongjmp(fault_jmpbuf, 1);
}

/*
 * Evaluates to whether or not @access came without a SIGBUS.  What knows is what the
 * handler has written: the value of a local variable is anyone's guess after the
 * jump, as the compiler doesn't expect one.
 */
#define no_sigbus(access)						\
({									\
	WRITE_ONCE(fault_code, 0);					\
	if (!sigsetjmp(fault_jmpbuf, 0)) {				\
		WRITE_ONCE(fault_is_expected, true);			\
		access;							\
		WRITE_ONCE(fault_is_expected, false);			\
	}								\
	!READ_ONCE(fault_code);						\
})

static bool is_poisonable(u32 page)
{
	return page >= FIRST_POISONABLE;
}

static bool may_be_poisoned(struct look *look, struct mapping *mapping)
{
	u32 begun;

	if (!is_poisonable(look->page))
		return false;

	full_barrier();
	begun = READ_ONCE(shared->pages[look->page].poisons_begun);
	return begun != look->poisons_over ||
	       begun != mapping->poisons[look->page - FIRST_POISONABLE];
}

/* Promises 2, 6 and 13: is it possible that the host could, or could not? */
static void check_access(struct look *look, struct mapping *mapping, bool ok,
			 enum operation op)
{
	struct state *to = shared->pages[look->page].to;

	full_barrier();
	TEST_ASSERT(ok || look->at[0] != READ_ONCE(to[1].begun) ||
		    may_be_poisoned(look, mapping),
		    "%s: no access to page %u, which was shared all the time",
		    op_names[op], look->page);
	TEST_ASSERT(!ok || look->at[1] != READ_ONCE(to[0].begun),
		    "%s: access to page %u, which was private all the time",
		    op_names[op], look->page);
	TEST_ASSERT(!ok || !was_poisoned(look),
		    "%s: access to page %u, which was poisoned all the time",
		    op_names[op], look->page);
}

static void check_contents(struct look *look, u64 *words, enum operation op)
{
	bool ok = check_words(look, words, true);

	TEST_ASSERT(ok,
		    "%s, page %u: writer %u's word 0x%lx is %s, after 0x%lx and hole 0x%lx",
		    op_names[op], look->page, look->writer, look->word, look->error,
		    look->done[look->writer], look->dropped[look->writer]);
}

/* All of the words in a page that somebody, or nobody, writes. */
static void get_words(void *mem, u32 page, u64 *words)
{
	u32 i;

	for (i = 0; i <= shared->nr_writers; i++)
		words[i] = READ_ONCE(*word_addr(mem, i, page));
}

/* Does the kernel get at the page by itself, i.e. need a reference to it? */
static bool is_remote(enum operation op)
{
	return op == READ_REMOTE || op == WRITE_REMOTE || op == PEEK || op == POKE;
}

/* Returns true on success, false on EFAULT, which debuggers know as EIO. */
static bool check_errno(ssize_t r, ssize_t expected, enum operation op)
{
	int fault = op == PEEK || op == POKE ? EIO : EFAULT;

	/* What is unmapped while it is being copied is copied in part. */
	TEST_ASSERT(r >= 0 || errno == fault ||
		    (errno == EHWPOISON && op == POPULATE),
		    "%s failed with errno %d (%s)", op_names[op], errno, strerror(errno));
	return r == expected;
}

static bool fetch(struct worker *w, enum operation op, u8 *mem, u32 page, u64 *words)
{
	struct iovec local = { .iov_base = w->scratch, .iov_len = page_size };
	struct iovec remote = { .iov_base = mem, .iov_len = page_size };

	switch (op) {
	case READ:
		return no_sigbus(get_words(mem, page, words));
	case COPY_FROM:
		if (!check_errno(pwrite(w->scratch_fd, mem, page_size, 0), page_size, op))
			return false;
		TEST_ASSERT_EQ(pread(w->scratch_fd, w->scratch, page_size, 0), page_size);
		break;
	case READ_REMOTE:
		if (!check_errno(process_vm_readv(vmm_pid, &local, 1, &remote, 1, 0),
				 page_size, op))
			return false;
		break;
	case PEEK:
		if (!check_errno(pread(w->mem_fd, w->scratch, page_size, (uintptr_t)mem),
				 page_size, op))
			return false;
		break;
	default:
		TEST_FAIL("%s does not read", op_names[op]);
	}

	get_words(w->scratch, page, words);
	return true;
}

static bool store(struct worker *w, enum operation op, u64 *addr, u64 word)
{
	struct iovec local = { .iov_base = &word, .iov_len = sizeof(word) };
	struct iovec remote = { .iov_base = addr, .iov_len = sizeof(word) };

	switch (op) {
	case WRITE:
		return no_sigbus(WRITE_ONCE(*addr, word));
	case COPY_TO:
		TEST_ASSERT_EQ(pwrite(w->scratch_fd, &word, sizeof(word), 0), sizeof(word));
		return check_errno(pread(w->scratch_fd, addr, sizeof(word), 0),
				   sizeof(word), op);
	case WRITE_REMOTE:
		return check_errno(process_vm_writev(vmm_pid, &local, 1, &remote, 1, 0),
				   sizeof(word), op);
	case POKE:
		return check_errno(pwrite(w->mem_fd, &word, sizeof(word), (uintptr_t)addr),
				   sizeof(word), op);
	default:
		TEST_FAIL("%s does not write", op_names[op]);
	}
}

static struct mapping *pick_mapping(struct worker *w, enum operation op)
{
	/* The only one that is sure to be in the VMM. */
	if (is_remote(op))
		return &common;

	return kvm_random_bool(&w->rng) ? &common : &w->own;
}

/* Who gets a reference to pages says so, for EAGAIN to have a reason. */
static void begin_refs(u32 first, u32 nr)
{
	while (nr--)
		inc(&shared->pages[first + nr].refs_begun);
}

static void end_refs(u32 first, u32 nr)
{
	full_barrier();
	while (nr--)
		inc(&shared->pages[first + nr].refs_done);
}

static enum outcome host_read(struct worker *w, enum operation op)
{
	struct mapping *mapping = pick_mapping(w, op);
	u32 page = pick(&w->rng, NR_PAGES);
	u64 words[MAX_WRITERS + 1];
	struct look look;
	bool ok;

	look_at(&look, page);
	if (is_remote(op))
		begin_refs(page, 1);
	ok = fetch(w, op, mapping->mem + page * page_size, page, words);
	if (is_remote(op))
		end_refs(page, 1);

	check_access(&look, mapping, ok, op);
	if (ok)
		check_contents(&look, words, op);
	return ok ? OK : FAULT;
}

static enum outcome host_write(struct worker *w, enum operation op)
{
	struct mapping *mapping = pick_mapping(w, op);
	u32 page = pick(&w->rng, NR_PAGES);
	struct look look;
	u64 word, done;
	u64 *addr;
	bool ok;

	addr = word_addr(mapping->mem + page * page_size, w->id, page);
	word = begin_write(w->id, page, &done);

	look_at(&look, page);
	if (is_remote(op))
		begin_refs(page, 1);
	ok = store(w, op, addr, word);
	if (is_remote(op))
		end_refs(page, 1);

	check_access(&look, mapping, ok, op);
	if (ok)
		end_write(w->id, page, done);
	return ok ? OK : FAULT;
}

static enum outcome host_populate(struct worker *w, enum operation op)
{
	struct mapping *mapping = pick_mapping(w, op);
	u32 page = pick(&w->rng, NR_PAGES);
	struct look look;
	bool ok;

	look_at(&look, page);
	ok = check_errno(madvise(mapping->mem + page * page_size, page_size,
				 kvm_random_bool(&w->rng) ? MADV_POPULATE_READ :
							    MADV_POPULATE_WRITE),
			 0, op);
	check_access(&look, mapping, ok, op);
	return ok ? OK : FAULT;
}

static void map_file(struct mapping *mapping, int fd)
{
	u32 i;

	for (i = 0; i < NR_POISONABLE; i++)
		mapping->poisons[i] =
			READ_ONCE(shared->pages[FIRST_POISONABLE + i].poisons_begun);
	full_barrier();
	mapping->mem = kvm_mmap(file_size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}

/* Pages are unmapped first, and references to them are put a bit later. */
static void remap_file(struct worker *w)
{
	begin_refs(0, NR_PAGES);
	kvm_munmap(w->own.mem, file_size());
	end_refs(0, NR_PAGES);
	map_file(&w->own, w->fd);
}

static enum outcome host_remap(struct worker *w, enum operation op)
{
	remap_file(w);
	return OK;
}

static enum outcome host_dontneed(struct worker *w, enum operation op)
{
	u32 first, nr;

	pick_range(&w->rng, &first, &nr);
	begin_refs(first, nr);
	kvm_madvise(w->own.mem + first * page_size, nr * page_size, MADV_DONTNEED);
	end_refs(first, nr);
	return OK;
}

/* Somewhere else, where there is nothing to be unmapped. */
static enum outcome host_mremap(struct worker *w, enum operation op)
{
	u8 *mem = kvm_mmap(file_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	mem = mremap(w->own.mem, file_size(), file_size(),
		     MREMAP_MAYMOVE | MREMAP_FIXED, mem);
	TEST_ASSERT(mem != MAP_FAILED, "mremap() failed");
	w->own.mem = mem;
	return OK;
}

/*
 * A reference that is held for a while.  Promise 2: the page does not become
 * private; the exception is that there is a hole, i.e. that it's another page.
 */
static enum outcome host_pin(struct worker *w, enum operation op)
{
	struct mapping *mapping = pick_mapping(w, op);
	u32 page = pick(&w->rng, NR_PAGES);
	struct page *p = &shared->pages[page];
	struct iovec iov = {
		.iov_base = mapping->mem + page * page_size,
		.iov_len = page_size,
	};
	u64 words[MAX_WRITERS + 1];
	struct look look;
	u32 i, punches;
	bool ok;

	begin_refs(page, 1);
	punches = quiet(&p->punches_begun, &p->punches_done);
	look_at(&look, page);
	ok = check_errno(vmsplice(w->pipe[1], &iov, 1, 0), page_size, op);
	check_access(&look, mapping, ok, op);
	if (ok) {
		for (i = pick(&w->rng, 8); i; i--)
			sched_yield();

		look_at(&look, page);
		TEST_ASSERT(look.at[1] != READ_ONCE(p->to[0].begun) ||
			    punches != READ_ONCE(p->punches_begun),
			    "Page %u is private while there is a reference to it", page);

		TEST_ASSERT_EQ(read(w->pipe[0], w->scratch, page_size), page_size);
		get_words(w->scratch, page, words);
		for (i = 0; i <= shared->nr_writers; i++)
			TEST_ASSERT(!(words[i] & SECRET),
				    "Page %u is private, and read through a reference to it",
				    page);
		full_barrier();
		if (punches == READ_ONCE(p->punches_begun))
			check_contents(&look, words, op);
	}
	end_refs(page, 1);
	return ok ? OK : FAULT;
}

static enum outcome host_fork(struct worker *w, enum operation op)
{
	enum operation ops[] = { READ, WRITE, COPY_FROM, COPY_TO };
	int status, i;
	pid_t pid;

	begin_refs(0, NR_PAGES);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		for (i = 0; i < 8; i++) {
			enum operation child_op = ops[pick(&w->rng, ARRAY_SIZE(ops))];

			if (child_op == READ || child_op == COPY_FROM)
				host_read(w, child_op);
			else
				host_write(w, child_op);
		}
		_exit(KSFT_PASS);
	}
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(!status, "Forked process failed, wait status = 0x%x", status);
	end_refs(0, NR_PAGES);
	return OK;
}

/*
 * Conversions: say so, do so, and draw conclusions.
 */
static int convert(u32 first, u32 nr, bool private)
{
	struct {
		u32 nr;
		u32 opposite;
		bool was_opposite;
		u32 refs;
	} before[NR_PAGES];
	struct state *to, *from;
	u64 error_offset;
	struct page *p;
	u32 i;
	int r;

	inc(&shared->changes_begun);
	for (i = 0; i < nr; i++) {
		p = &shared->pages[first + i];
		to = &p->to[private];
		from = &p->to[!private];

		before[i].refs = quiet(&p->refs_begun, &p->refs_done);
		before[i].nr = inc(&to->begun);
		before[i].opposite = quiet(&from->begun, &from->done);
		before[i].was_opposite = READ_ONCE(from->at) == before[i].nr - 1;
	}
	full_barrier();

	r = __try_convert(gmem_fd, first * page_size, nr * page_size,
			  private ? ATTR_PRIVATE : ATTR_SHARED, &error_offset);
	TEST_ASSERT(!r || (r == EAGAIN && private),
		    "Failed to make pages [%u, %u) %s, errno %d (%s)", first, first + nr,
		    private ? "private" : "shared", r, strerror(r));

	full_barrier();
	for (i = 0; i < nr; i++) {
		p = &shared->pages[first + i];
		to = &p->to[private];
		from = &p->to[!private];

		if (!r && before[i].opposite != NEVER)
			WRITE_ONCE(to->at, before[i].opposite);
		/* Promise 1 */
		if (r && before[i].was_opposite)
			WRITE_ONCE(from->at, before[i].nr);
		inc(&to->done);
	}
	inc(&shared->changes_done);

	/* Promises 7 and 17 */
	if (r) {
		i = error_offset / page_size - first;
		p = &shared->pages[first + i];
		TEST_ASSERT(before[i].refs != READ_ONCE(p->refs_begun),
			    "EAGAIN in [%u, %u) for page %u, to which nobody had a reference",
			    first, first + nr, first + i);
	}
	return r;
}

static enum outcome host_to_private(struct worker *w, enum operation op)
{
	u32 first, nr;

	pick_range(&w->rng, &first, &nr);
	return convert(first, nr, true) ? AGAIN : OK;
}

static enum outcome host_to_shared(struct worker *w, enum operation op)
{
	u32 first, nr;

	pick_range(&w->rng, &first, &nr);
	if (!try_lock_pages(first, nr))
		return BUSY;

	convert(first, nr, false);
	unlock_pages(first, nr);
	return OK;
}

/* Only the process that created the VM gets to convert. */
static enum outcome host_denied(struct worker *w, enum operation op)
{
	u64 error_offset;
	u32 first, nr;
	int r;

	pick_range(&w->rng, &first, &nr);
	r = __try_convert(w->fd, first * page_size, nr * page_size,
			  kvm_random_bool(&w->rng) ? ATTR_PRIVATE : ATTR_SHARED,
			  &error_offset);
	TEST_ASSERT(r == EIO, "Another process converts: errno %d (%s)", r, strerror(r));
	return OK;
}

/* Whatever was complete before the hole is punched is gone afterwards. */
static void punch_hole(u32 first, u32 nr)
{
	u64 dropped[NR_PAGES][MAX_WRITERS];
	struct page *p;
	u32 i, j;

	for (i = 0; i < nr; i++) {
		p = &shared->pages[first + i];
		inc(&p->punches_begun);
		for (j = 0; j < shared->nr_writers; j++)
			dropped[i][j] = DONE_NR(READ_ONCE(p->words[j].done));
	}
	full_barrier();

	kvm_fallocate(gmem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      first * page_size, nr * page_size);

	full_barrier();
	for (i = 0; i < nr; i++) {
		p = &shared->pages[first + i];
		for (j = 0; j < shared->nr_writers; j++) {
			u64 *max = &p->words[j].dropped;
			u64 old = READ_ONCE(*max);

			while (old < dropped[i][j] &&
			       !__atomic_compare_exchange_n(max, &old, dropped[i][j],
							    false, __ATOMIC_SEQ_CST,
							    __ATOMIC_SEQ_CST))
				;
		}
		inc(&p->punches_done);
	}
}

static enum outcome host_punch(struct worker *w, enum operation op)
{
	u32 first, nr;

	pick_range(&w->rng, &first, &nr);
	punch_hole(first, nr);
	return OK;
}

static enum outcome host_allocate(struct worker *w, enum operation op)
{
	u32 first, nr;

	pick_range(&w->rng, &first, &nr);
	kvm_fallocate(gmem_fd, FALLOC_FL_KEEP_SIZE, first * page_size, nr * page_size);
	return OK;
}

/* Every other memslot has a mapping, too, though there's no need for it. */
static void set_slot(u32 slot, u64 size)
{
	u64 offset = slot * PAGES_PER_SLOT * page_size;

	vm_set_user_memory_region2(vm, TEST_SLOT + slot, KVM_MEM_GUEST_MEMFD,
				   TEST_GPA + offset, size,
				   slot & 1 ? common.mem + offset : NULL,
				   gmem_fd, offset);
}

static enum outcome host_slot(struct worker *w, enum operation op)
{
	u32 i, nr = pick(&w->rng, NR_SLOTS);
	struct slot *slot = &shared->slots[nr];

	if (!try_lock(&slot->lock))
		return BUSY;

	inc(&shared->changes_begun);
	inc(&slot->begun);
	set_slot(nr, 0);
	for (i = pick(&w->rng, 4); i; i--)
		sched_yield();
	set_slot(nr, PAGES_PER_SLOT * page_size);
	full_barrier();
	inc(&slot->done);
	inc(&shared->changes_done);
	unlock(&slot->lock);
	return OK;
}

/*
 * What was known before a vCPU ran, or faulted in memory.
 */
struct run {
	u32 changes;
	u32 slots[NR_SLOTS];
	u32 poisons_over[NR_POISONABLE];
};

static void before_run(struct run *run)
{
	u32 i;

	run->changes = quiet(&shared->changes_begun, &shared->changes_done);
	for (i = 0; i < NR_SLOTS; i++)
		run->slots[i] = quiet(&shared->slots[i].begun, &shared->slots[i].done);
	for (i = 0; i < NR_POISONABLE; i++)
		run->poisons_over[i] =
			READ_ONCE(shared->pages[FIRST_POISONABLE + i].poisons_over);
	full_barrier();
}

static bool was_without_slot(struct run *run, u32 page)
{
	u32 slot = page / PAGES_PER_SLOT;

	full_barrier();
	return run->slots[slot] != READ_ONCE(shared->slots[slot].begun);
}

static bool was_changed(struct run *run)
{
	full_barrier();
	return run->changes != READ_ONCE(shared->changes_begun);
}

static bool run_was_poisoned(struct run *run, u32 page)
{
	full_barrier();
	return is_poisonable(page) &&
	       run->poisons_over[page - FIRST_POISONABLE] !=
	       READ_ONCE(shared->pages[page].poisons_begun);
}

static enum outcome host_prefault(struct worker *w, enum operation op)
{
	struct kvm_pre_fault_memory range = {};
	struct run run;
	u32 first, nr;
	u32 page;
	int r;

	pick_range(&w->rng, &first, &nr);
	range.gpa = TEST_GPA + first * page_size;
	range.size = nr * page_size;

	before_run(&run);
	r = __vcpu_ioctl(spare_vcpu, KVM_PRE_FAULT_MEMORY, &range);
	if (!r)
		return OK;

	page = (range.gpa - TEST_GPA) / page_size;
	switch (errno) {
	case EAGAIN:
	case ENOENT:
		TEST_ASSERT(was_without_slot(&run, page),
			    "No memslot to pre-fault page %u into", page);
		return FAULT;
	case EFAULT:
		TEST_ASSERT(was_changed(&run),
			    "EFAULT pre-faulting page %u, though nothing changes", page);
		return FAULT;
	case EHWPOISON:
		TEST_ASSERT(run_was_poisoned(&run, page),
			    "EHWPOISON pre-faulting page %u, which isn't poisoned", page);
		return FAULT;
	default:
		TEST_FAIL("Pre-faulting page %u failed with errno %d (%s)", page,
			  errno, strerror(errno));
	}
}

/* Poison a page, look whether that's noticed, and get rid of it. */
static enum outcome host_poison(struct worker *w, enum operation op)
{
	u32 page = FIRST_POISONABLE + pick(&w->rng, NR_POISONABLE);
	u8 *mem = w->own.mem + page * page_size;
	struct page *p = &shared->pages[page];
	struct look look;
	u32 i, punches;
	int r = 0;
	bool ok;

	/* Have some of them early, and some of them late. */
	if (READ_ONCE(shared->nr_poisons) >
	    MAX_POISONS * min(shared->ops, shared->nr_ops) / shared->nr_ops ||
	    !try_lock(&p->lock))
		return BUSY;

	/* If need be, from where it isn't poisoned for good. */
	remap_file(w);
	mem = w->own.mem + page * page_size;

	begin_refs(page, 1);
	inc(&p->poisons_begun);
	punches = quiet(&p->punches_begun, &p->punches_done);
	look_at(&look, page);

	/* The process that finds the poison may get to know by way of a signal. */
	ok = !no_sigbus(r = madvise(mem, page_size, MADV_HWPOISON)) ||
	     !r || errno == EBUSY;
	TEST_ASSERT(ok || errno == EFAULT || errno == EHWPOISON,
		    "MADV_HWPOISON failed, errno %d (%s)", errno, strerror(errno));
	end_refs(page, 1);
	check_access(&look, &w->own, ok, op);
	if (ok) {
		inc(&shared->nr_poisons);
		if (punches != NEVER)
			WRITE_ONCE(p->poisoned_at, punches + 1);

		look_at(&look, page);
		check_access(&look, &w->own, no_sigbus(READ_ONCE(*mem)), op);
		TEST_ASSERT(READ_ONCE(fault_code) == BUS_MCEERR_AR || !was_poisoned(&look) ||
			    look.at[0] != READ_ONCE(p->to[1].begun),
			    "Poison in page %u was reported with code %d", page, fault_code);
		for (i = pick(&w->rng, 32); i; i--)
			sched_yield();
	}

	punch_hole(page, 1);
	WRITE_ONCE(p->poisons_over, p->poisons_begun);
	unlock(&p->lock);
	return ok ? OK : FAULT;
}

/* A file that doesn't live long, with a memslot and a mapping that live longer. */
static enum outcome host_file(struct worker *w, enum operation op)
{
	size_t size = 2 * page_size;
	u32 slot = TEST_SLOT + NR_SLOTS + w->id;
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_GPA + file_size() + w->id * size,
		.size = size,
	};
	int fd = vm_create_guest_memfd(vm, size, MMAP_SHARED);
	u64 *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	vm_set_user_memory_region2(vm, slot, KVM_MEM_GUEST_MEMFD, range.gpa, size,
				   NULL, fd, 0);

	TEST_ASSERT(!READ_ONCE(*mem), "A new file contains 0x%lx", *mem);
	WRITE_ONCE(*mem, SECRET);
	gmem_set_private(fd, 0, page_size);
	TEST_ASSERT(!no_sigbus(READ_ONCE(*mem)), "The host can read private memory");
	gmem_set_shared(fd, 0, size);
	TEST_ASSERT_EQ(READ_ONCE(*mem), SECRET);
	gmem_set_private(fd, 0, size);

	/* Have something to be unmapped from the guest. */
	if (op_weight(w, PREFAULT))
		vcpu_ioctl(spare_vcpu, KVM_PRE_FAULT_MEMORY, &range);

	kvm_close(fd);
	TEST_ASSERT(!no_sigbus(READ_ONCE(*mem)), "The host can read private memory");
	kvm_munmap(mem, size);
	vm_set_user_memory_region2(vm, slot, 0, range.gpa, 0, NULL, -1, 0);
	return OK;
}

/* Compaction takes references to pages, if only to find out that they can't be moved. */
static enum outcome host_compact(struct worker *w, enum operation op)
{
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);

	TEST_ASSERT(fd >= 0, "Failed to open compact_memory, errno = %d (%s)", errno,
		    strerror(errno));
	TEST_ASSERT_EQ(write(fd, "1", 1), 1);
	kvm_close(fd);
	return OK;
}

/* What's shown is of one moment, at which there wasn't anything impossible. */
static enum outcome host_info(struct worker *w, enum operation op)
{
	struct gmem_info info;
	u64 nr_fewer;

	gmem_read_info(w->fd, &info);
	TEST_ASSERT_EQ(info.size, file_size());
	TEST_ASSERT(info.populated <= NR_PAGES && info.private <= NR_PAGES,
		    "Of %u pages, %llu are populated, and %llu private", NR_PAGES,
		    info.populated, info.private);

	/* The fewer of either kind can have others to the left and the right. */
	nr_fewer = min(info.private, NR_PAGES - info.private);
	TEST_ASSERT(info.ranges >= 1 + !!nr_fewer && info.ranges <= 1 + 2 * nr_fewer,
		    "There are %llu private pages in %llu ranges", info.private,
		    info.ranges);
	return OK;
}

static enum outcome host_pass(struct worker *w, enum operation op)
{
	u32 backend = pick(&w->rng, nr_backends);

	if (!__atomic_exchange_n(&shared->wants_fd[backend], false, __ATOMIC_SEQ_CST))
		return BUSY;

	send_fd(backend_socks[backend], gmem_fd);
	return OK;
}

/* Close the old file descriptor, and use the new one from now on. */
static enum outcome host_receive(struct worker *w, enum operation op)
{
	struct pollfd pfd = { .fd = w->sock, .events = POLLIN };
	int r = poll(&pfd, 1, 0);

	TEST_ASSERT(r >= 0, "poll() failed, errno = %d (%s)", errno, strerror(errno));
	if (!r) {
		WRITE_ONCE(shared->wants_fd[w->backend], true);
		return BUSY;
	}

	kvm_close(w->fd);
	w->fd = receive_fd(w->sock);
	remap_file(w);
	return OK;
}

/*
 * What vCPUs do comes first, and is up to the guest.  Weights are for threads of
 * the VMM, and for other processes.
 */
static struct {
	enum outcome (*fn)(struct worker *w, enum operation op);
	u32 weight[2];
	/* There's a reference to a page for a moment. */
	bool has_refs;
	/* Never waits for anybody in user space, and so is safe to prioritise. */
	bool can_preempt;
	/* It's impossible for all of them to work out. */
	bool must_fault;
} ops[NR_OPS] = {
	[READ]		= { host_read, { 20, 20 }, .must_fault = true },
	[WRITE]		= { host_write, { 20, 20 }, .must_fault = true },
	[COPY_FROM]	= { host_read, { 5, 5 }, .must_fault = true },
	[COPY_TO]	= { host_write, { 5, 5 }, .must_fault = true },
	[READ_REMOTE]	= { host_read, { 4, 4 }, .has_refs = true },
	[WRITE_REMOTE]	= { host_write, { 4, 4 }, .has_refs = true },
	[PEEK]		= { host_read, { 2, 2 }, .has_refs = true },
	[POKE]		= { host_write, { 2, 2 }, .has_refs = true },
	[POPULATE]	= { host_populate, { 5, 5 } },
	[MREMAP]	= { host_mremap, { 3, 3 } },
	[TO_PRIVATE]	= { host_to_private, { 12, 0 }, .can_preempt = true },
	[TO_SHARED]	= { host_to_shared, { 16, 0 }, .can_preempt = true },
	[DENIED]	= { host_denied, { 0, 3 } },
	[PUNCH]		= { host_punch, { 4, 0 }, .can_preempt = true },
	[ALLOCATE]	= { host_allocate, { 2, 0 } },
	[SLOT]		= { host_slot, { 2, 0 } },
	[PREFAULT]	= { host_prefault, { 4, 0 } },
	[FILE_LIFE]	= { host_file, { 1, 0 } },
	[DONTNEED]	= { host_dontneed, { 3, 3 }, .has_refs = true },
	[REMAP]		= { host_remap, { 2, 2 }, .has_refs = true },
	[FORK]		= { host_fork, { 1, 1 }, .has_refs = true },
	[COMPACT]	= { host_compact, { 1, 0 } },
	[PIN]		= { host_pin, { 3, 3 }, .has_refs = true },
	[POISON]	= { host_poison, { 1, 0 }, .has_refs = true },
	[INFO]		= { host_info, { 2, 2 } },
	[PASS]		= { host_pass, { 2, 0 }, .has_refs = true },
	[RECEIVE]	= { host_receive, { 0, 2 }, .has_refs = true },
};

/* Whether or not there are operations that need references. */
static bool with_refs;

static u32 op_weight(struct worker *w, enum operation op)
{
	if (ops[op].has_refs && !with_refs)
		return 0;

	return ops[op].weight[!w->is_vmm];
}

static bool is_used(enum operation op)
{
	struct worker vmm = { .is_vmm = true }, backend = {};

	if (!ops[op].fn)
		return nr_vcpus;

	return op_weight(&vmm, op) || (nr_backends && op_weight(&backend, op));
}

/* Is there an outcome that the operation is known to have, but didn't have yet? */
static bool is_missing(enum operation op, enum outcome outcome)
{
	return is_used(op) && (outcome == OK || ops[op].must_fault) &&
	       !READ_ONCE(shared->counts[op][outcome]);
}

/* Operations are picked at random: the rare ones may take more of them to occur. */
static bool more_host_ops(void)
{
	u32 i;

	if (more_ops())
		return true;

	if (READ_ONCE(shared->stop) ||
	    READ_ONCE(shared->ops) > MAX_FACTOR * shared->nr_ops)
		return false;

	for (i = 0; i < NR_OPS; i++) {
		if (ops[i].fn && (is_missing(i, OK) || is_missing(i, FAULT)))
			return true;
	}
	return false;
}

static void init_worker(struct worker *w, u32 id, bool is_vmm)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/mem", vmm_pid);
	w->mem_fd = open(path, O_RDWR);
	TEST_ASSERT(w->mem_fd >= 0, "Failed to open %s", path);

	w->id = id;
	w->is_vmm = is_vmm;
	w->rng = new_rng(id);
	w->fd = is_vmm ? gmem_fd : kvm_dup(gmem_fd);
	w->scratch_fd = kvm_memfd_alloc(page_size, false);
	w->scratch = malloc(page_size);
	TEST_ASSERT(w->scratch, "malloc() failed");
	TEST_ASSERT(!pipe(w->pipe), "pipe() failed");
	map_file(&w->own, w->fd);
}

/*
 * Whoever waits for a lock in the kernel runs as soon as the lock is free, and not
 * when its owner has left the kernel, which is when most races are over.  Without
 * the permission, it's just less likely that races happen.
 */
static void set_priority(bool high)
{
	struct sched_param param = { .sched_priority = high };

	sched_setscheduler(0, high ? SCHED_FIFO : SCHED_OTHER, &param);
}

static void do_ops(struct worker *w)
{
	u32 i, nr, total = 0;
	bool preempt;

	for (i = 0; i < NR_OPS; i++)
		total += op_weight(w, i);

	while (more_host_ops()) {
		nr = pick(&w->rng, total);
		for (i = 0; nr >= op_weight(w, i); i++)
			nr -= op_weight(w, i);

		preempt = ops[i].can_preempt && kvm_random_bool(&w->rng);
		if (preempt)
			set_priority(true);
		count(i, ops[i].fn(w, i));
		if (preempt)
			set_priority(false);

		if (!pick(&w->rng, 4))
			sched_yield();
	}
}

static void *thread_main(void *data)
{
	struct worker *w = data;

	do_ops(w);
	__atomic_sub_fetch(&shared->nr_running, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void backend_main(struct worker *w)
{
	/* Also if the VMM was gone before. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != vmm_pid)
		_exit(KSFT_FAIL);

	init_worker(w, w->id, false);
	do_ops(w);

	/* Exit means to unmap, i.e. to put references, wait for the last conversion. */
	while (READ_ONCE(shared->nr_running))
		sched_yield();
	_exit(KSFT_PASS);
}

/*
 * The VMM proper
 */

static void serve_conversion(gpa_t gpa, u64 size, bool private)
{
	u32 nr_retries = 0;

	TEST_ASSERT(gpa >= TEST_GPA && gpa + size <= TEST_GPA + file_size(),
		    "The guest wants to convert what isn't there");

	while (convert((gpa - TEST_GPA) / page_size, size / page_size, private)) {
		count(private ? GUEST_TO_PRIVATE : GUEST_TO_SHARED, AGAIN);
		TEST_ASSERT(nr_retries++ < 100000, "There's no end of references");
		sched_yield();
	}
}

/* Without a memslot, make the guest try again once there is one. */
static void serve_mmio(struct kvm_vcpu *vcpu, struct run *run)
{
	u32 page = (vcpu->run->mmio.phys_addr - TEST_GPA) / page_size;
	struct slot *slot;

	TEST_ASSERT(page < NR_PAGES, "MMIO at 0x%llx", vcpu->run->mmio.phys_addr);
	TEST_ASSERT(was_without_slot(run, page),
		    "vCPU %u doesn't find page %u in its memslot", vcpu->id, page);

	slot = &shared->slots[page / PAGES_PER_SLOT];
	while (quiet(&slot->begun, &slot->done) == NEVER)
		sched_yield();
	memset(vcpu->run->mmio.data, 0, sizeof(vcpu->run->mmio.data));
	WRITE_ONCE(shared->mmio[vcpu->id], true);
}

static void serve_fault(struct kvm_vcpu *vcpu, struct run *run, int err)
{
	u32 page = (vcpu->run->memory_fault.gpa - TEST_GPA) / page_size;
	struct page *p = &shared->pages[page];

	TEST_ASSERT(vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT && page < NR_PAGES,
		    "KVM_RUN failed with errno %d (%s), exit reason %s", err,
		    strerror(err), exit_reason_str(vcpu->run->exit_reason));

	if (err == EFAULT) {
		TEST_ASSERT(was_changed(run),
			    "vCPU %u can't access page %u, though nothing changes",
			    vcpu->id, page);
		return;
	}

	TEST_ASSERT(err == EHWPOISON && run_was_poisoned(run, page),
		    "vCPU %u can't access page %u, errno %d (%s)", vcpu->id, page, err,
		    strerror(err));
	while (READ_ONCE(p->poisons_over) != READ_ONCE(p->poisons_begun))
		sched_yield();
}

static void *vcpu_main(void *data)
{
	struct kvm_vcpu *vcpu = data;
	struct run run;
	struct ucall uc;
	bool private;
	gpa_t gpa;
	u64 size;

	for (;;) {
		before_run(&run);
		if (_vcpu_run(vcpu)) {
			serve_fault(vcpu, &run, errno);
			continue;
		}

		if (arch_is_conversion_exit(vcpu, &gpa, &size, &private)) {
			serve_conversion(gpa, size, private);
			continue;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_DONE:
			__atomic_sub_fetch(&shared->nr_running, 1, __ATOMIC_SEQ_CST);
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
			serve_mmio(vcpu, &run);
			break;
		}
	}
}

static void create_vm(struct kvm_vcpu **vcpus, u32 nr, void *code)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = PRIVATE_VM_TYPE,
	};
	u32 nr_pages, i;

	vm = __vm_create(shape, nr, 0);
	vm_enable_gmem_attributes(vm);
	arch_enable_conversion_exits(vm);

	nr_pages = vm_calc_num_guest_pages(vm->mode, sizeof(*shared));
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_SHMEM, SHARED_GPA, SHARED_SLOT,
				    nr_pages, 0);
	virt_map(vm, SHARED_GPA, SHARED_GPA, nr_pages);
	virt_map(vm, TEST_GPA, TEST_GPA, vm_calc_num_guest_pages(vm->mode, file_size()));

	shared = addr_gpa2hva(vm, SHARED_GPA);
	shared->seed = kvm_random_seed;
	for (i = 0; i < NR_PAGES; i++)
		shared->pages[i].to[1].at = NEVER;

	write_guest_global(vm, shared, (struct shared *)SHARED_GPA);
	sync_global_to_guest(vm, page_size);

	gmem_fd = vm_create_guest_memfd(vm, file_size(), MMAP_SHARED);
	map_file(&common, gmem_fd);
	for (i = 0; i < NR_SLOTS; i++)
		set_slot(i, PAGES_PER_SLOT * page_size);

	for (i = 0; i < nr; i++) {
		vcpus[i] = vm_vcpu_add(vm, i, code);
		vcpu_args_set(vcpus[i], 1, i);
	}
	kvm_arch_vm_finalize_vcpus(vm);
}

static void destroy_vm(void)
{
	kvm_munmap(common.mem, file_size());
	kvm_close(gmem_fd);
	kvm_vm_free(vm);
	shared = NULL;
}

/* Once it's quiet, all that there is to be known is known. */
static void check_all(void)
{
	bool ok, was_ok = false;
	u64 words[MAX_WRITERS + 1];
	u64 nr_private = 0, nr_ranges = 0;
	struct gmem_info info;
	struct mapping mapping;
	struct look look;
	u32 i;

	map_file(&mapping, gmem_fd);
	for (i = 0; i < NR_PAGES; i++) {
		look_at(&look, i);
		ok = no_sigbus(get_words(mapping.mem + i * page_size, i, words));
		check_access(&look, &mapping, ok, READ);
		if (ok)
			check_contents(&look, words, READ);
		nr_private += !ok;
		nr_ranges += !i || ok != was_ok;
		was_ok = ok;
	}

	/* Promise 12 */
	gmem_read_info(gmem_fd, &info);
	TEST_ASSERT_EQ(info.private, nr_private);
	TEST_ASSERT_EQ(info.ranges, nr_ranges);

	TEST_ASSERT_EQ(convert(0, NR_PAGES, false), 0);
	gmem_read_info(gmem_fd, &info);
	TEST_ASSERT_EQ(info.private, 0);
	TEST_ASSERT_EQ(info.ranges, 1);
	for (i = 0; i < NR_PAGES; i++) {
		look_at(&look, i);
		ok = no_sigbus(get_words(mapping.mem + i * page_size, i, words));
		check_access(&look, &mapping, ok, READ);
		check_contents(&look, words, READ);
	}
	kvm_munmap(mapping.mem, file_size());
}

static void print_counts(void)
{
	u64 *c;
	u32 i;

	ksft_print_msg("%-18s %9s %9s %9s %9s\n", "", "ok", "fault", "busy", "EAGAIN");
	for (i = 0; i < NR_OPS; i++) {
		c = shared->counts[i];
		if (c[OK] || c[FAULT] || c[BUSY] || c[AGAIN])
			ksft_print_msg("%-18s %9lu %9lu %9lu %9lu\n", op_names[i], c[OK],
				       c[FAULT], c[BUSY], c[AGAIN]);
	}
}

/* Nothing is tested by what does not happen. */
static void check_counts(void)
{
	u32 i;

	for (i = 0; i < NR_OPS; i++) {
		TEST_ASSERT(!is_missing(i, OK),
			    "There was no successful operation \"%s\"", op_names[i]);
		TEST_ASSERT(!is_missing(i, FAULT),
			    "There was no operation \"%s\" that hit private memory",
			    op_names[i]);
	}
}

static pid_t start_backend(u32 i)
{
	struct worker w = {
		.id = nr_vcpus + nr_threads + i,
		.backend = i,
	};
	int socks[2] = { -1, -1 };
	pid_t pid;

	if (ops[PASS].weight[0])
		TEST_ASSERT(!socketpair(AF_UNIX, SOCK_STREAM, 0, socks),
			    "socketpair() failed");
	fflush(NULL);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		w.sock = socks[1];
		backend_main(&w);
	}

	if (socks[1] >= 0)
		kvm_close(socks[1]);
	backend_socks[i] = socks[0];
	return pid;
}

static void race(u64 nr_ops)
{
	struct kvm_vcpu *vcpus[MAX_WRITERS + 1];
	struct worker *workers;
	pthread_t threads[MAX_WRITERS];
	pid_t backends[MAX_BACKENDS];
	int status;
	u32 i;

	create_vm(vcpus, nr_vcpus + 1, guest_code);
	spare_vcpu = vcpus[nr_vcpus];
	shared->nr_ops = nr_ops;
	shared->nr_vcpus = nr_vcpus;
	shared->nr_writers = nr_vcpus + nr_threads + nr_backends;
	shared->nr_running = nr_vcpus + nr_threads;

	for (i = 0; i < nr_backends; i++)
		backends[i] = start_backend(i);

	workers = calloc(nr_threads, sizeof(*workers));
	TEST_ASSERT(workers, "calloc() failed");
	for (i = 0; i < nr_threads; i++)
		init_worker(&workers[i], nr_vcpus + i, true);

	for (i = 0; i < nr_vcpus; i++)
		kvm_pthread_create(&threads[i], NULL, vcpu_main, vcpus[i]);
	for (i = 0; i < nr_threads; i++)
		kvm_pthread_create(&threads[nr_vcpus + i], NULL, thread_main, &workers[i]);

	for (i = 0; i < nr_vcpus + nr_threads; i++)
		kvm_pthread_join(threads[i], NULL);
	for (i = 0; i < nr_backends; i++) {
		TEST_ASSERT_EQ(waitpid(backends[i], &status, 0), backends[i]);
		TEST_ASSERT(!status, "Backend %u failed, wait status = 0x%x", i, status);
		if (backend_socks[i] >= 0)
			kvm_close(backend_socks[i]);
	}

	print_counts();
	check_all();
	check_counts();

	for (i = 0; i < nr_threads; i++) {
		kvm_munmap(workers[i].own.mem, file_size());
		kvm_close(workers[i].mem_fd);
		kvm_close(workers[i].scratch_fd);
		kvm_close(workers[i].pipe[0]);
		kvm_close(workers[i].pipe[1]);
		free(workers[i].scratch);
	}
	free(workers);
	destroy_vm();
}

/* Nobody has references, i.e. a single EAGAIN is a failure. */
static void test_no_references(u64 nr_ops)
{
	with_refs = false;
	race(nr_ops);
}

static void test_everything(u64 nr_ops)
{
	with_refs = true;
	race(nr_ops);
}

/*
 * Promise 7: pages that were touched a moment ago are in caches of pages on their
 * way to the LRU, also of other CPUs, which holds references to them.
 */
#define NR_FRESH		10000
#define FRESH_BATCH		4

static void guest_touch(u32 id)
{
	u64 i;

	for (i = 0; ; i++) {
		u64 page = i % NR_PAGES;

		WRITE_ONCE(*(u64 *)(TEST_GPA + page * page_size), i + 1);
		GUEST_SYNC(page);
	}
}

static void next_cpu(cpu_set_t *cpus)
{
	int cpu = sched_getcpu();
	cpu_set_t next;

	do {
		cpu = (cpu + 1) % CPU_SETSIZE;
	} while (!CPU_ISSET(cpu, cpus));

	CPU_ZERO(&next);
	CPU_SET(cpu, &next);
	kvm_sched_setaffinity(0, sizeof(next), &next);
}

static void test_freshly_touched(u64 nr_ops)
{
	struct kvm_vcpu *vcpu;
	cpu_set_t cpus;
	u64 i, j;

	kvm_sched_getaffinity(0, sizeof(cpus), &cpus);
	create_vm(&vcpu, 1, guest_touch);

	for (i = 0; i < NR_FRESH; i += FRESH_BATCH) {
		u64 *words[FRESH_BATCH];

		for (j = 0; j < FRESH_BATCH; j++) {
			words[j] = (u64 *)(common.mem + (i + j) % NR_PAGES * page_size);

			if (i / FRESH_BATCH % 2)
				WRITE_ONCE(*words[j], i + j + 1);
			vcpu_run(vcpu);
			TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
		}

		next_cpu(&cpus);

		for (j = 0; j < FRESH_BATCH; j++) {
			u64 offset = (i + j) % NR_PAGES * page_size;

			gmem_set_private(gmem_fd, offset, page_size);
			TEST_ASSERT(!no_sigbus(READ_ONCE(*words[j])),
				    "The host can read private memory");
			gmem_set_shared(gmem_fd, offset, page_size);
			TEST_ASSERT_EQ(READ_ONCE(*words[j]), i + j + 1);
			kvm_fallocate(gmem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				      offset, page_size);
		}
	}

	kvm_sched_setaffinity(0, sizeof(cpus), &cpus);
	destroy_vm();
}

static const struct {
	const char *name;
	void (*fn)(u64 nr_ops);
} tests[] = {
	{ "freshly_touched", test_freshly_touched },
	{ "no_references", test_no_references },
	{ "everything", test_everything },
};

/*
 * A failed assertion is a failure, even if the library thinks it's a reason to
 * skip, e.g. because errno happens to be EACCES.
 */
static bool all_done;

static void fail_unless_done(void)
{
	if (all_done)
		return;

	if (shared) {
		WRITE_ONCE(shared->stop, true);
		ksft_print_msg("Failed after %lu operations\n", shared->ops);
	}
	fflush(NULL);
	_exit(KSFT_FAIL);
}

static void require_what_races(void)
{
#ifdef __x86_64__
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
#else
	ops[PREFAULT].weight[0] = 0;
#endif
	__TEST_REQUIRE(!madvise(NULL, 0, MADV_HWPOISON),
		       "Memory can't be poisoned, that needs CONFIG_MEMORY_FAILURE");
	__TEST_REQUIRE(!access("/proc/sys/vm/compact_memory", W_OK),
		       "Memory can't be compacted, that needs CONFIG_COMPACTION");

	if (!nr_backends) {
		ops[PASS].weight[0] = 0;
		ops[RECEIVE].weight[1] = 0;
	}
}

static void print_usage(const char *name)
{
	u32 i;

	printf("usage: %s [-n operations] [-s seed] [-v vcpus] [-w threads] [-b processes]\n"
	       "       [-t test]\n"
	       " -n: how many operations each test does, by default 20000, at least %u\n"
	       " -s: the seed, by default a random one\n"
	       " -v: vCPUs, by default %u\n"
	       " -w: threads of the VMM that access and convert memory, by default %u\n"
	       " -b: other processes that access memory, by default %u\n"
	       " -t: only this test, one of", name, MIN_OPS, nr_vcpus, nr_threads, nr_backends);
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		printf(" %s", tests[i].name);
	printf("\n");
}

int main(int argc, char *argv[])
{
	struct sigaction sa = {
		.sa_sigaction = sigbus_handler,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};
	const char *only = NULL;
	u64 nr_ops = 20000;
	u32 i, nr_tests = 0;
	int opt;

	while ((opt = getopt(argc, argv, "hn:s:v:w:b:t:")) != -1) {
		switch (opt) {
		case 'n':
			nr_ops = atoi_positive("Number of operations", optarg);
			break;
		case 's':
			kvm_random_seed = strtoul(optarg, NULL, 0);
			break;
		case 'v':
			nr_vcpus = atoi_non_negative("Number of vCPUs", optarg);
			break;
		case 'w':
			nr_threads = atoi_positive("Number of threads", optarg);
			break;
		case 'b':
			nr_backends = atoi_non_negative("Number of processes", optarg);
			break;
		case 't':
			only = optarg;
			break;
		case 'h':
		default:
			print_usage(argv[0]);
			exit(opt == 'h' ? KSFT_PASS : KSFT_FAIL);
		}
	}
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		nr_tests += !only || !strcmp(only, tests[i].name);
	if (!nr_tests || nr_ops < MIN_OPS || nr_backends > MAX_BACKENDS ||
	    nr_vcpus + nr_threads + nr_backends > MAX_WRITERS) {
		print_usage(argv[0]);
		exit(KSFT_FAIL);
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(arch_has_private_vms());

	require_what_races();

	page_size = getpagesize();
	vmm_pid = getpid();
	atexit(fail_unless_done);
	sigaction(SIGBUS, &sa, NULL);

	ksft_print_header();
	ksft_set_plan(nr_tests);
	ksft_print_msg("Seed: 0x%x\n", kvm_random_seed);

	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		if (only && strcmp(only, tests[i].name))
			continue;
		tests[i].fn(nr_ops);
		ksft_test_result_pass("%s\n", tests[i].name);
	}

	all_done = true;
	ksft_finished();
}
