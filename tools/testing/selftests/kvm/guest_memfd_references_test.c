// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who else has a hand on guest_memfd memory that's about to become private?
 *
 * Promise 7: every kind of outside reference makes to-private fail with EAGAIN,
 * at the right offset, while it's held, and succeed once it's released.
 *
 * Promise 6, for users in the kernel: what has no reference, but accesses memory
 * by its address whenever it likes to, gets an error once memory is private.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <linux/mount.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include "../../../../mm/gup_test.h"

#include "guest_memfd_fixture.h"
#include "guest_memfd_util.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/*
 * The tests are quick, but not on an emulated machine that runs a kernel with
 * all debugging aids enabled.
 */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

/* Contents: what's there in the first place, and what I/O puts there. */
#define OLD_TAG		0x51
#define NEW_TAG		0xa1

/*
 * A reference to some consecutive pages, or what it takes to get one.  Every
 * kind of references has a means to find out what its holder sees, and to
 * change the contents if that's what the reference is good for.
 */
struct ref {
	const struct ref_kind *kind;
	int gmem_fd;
	u8 *mem;
	u64 first;
	u64 nr;

	/* What the holder reads, or is going to write. */
	u8 *buf;

	/* A call that's in flight, and what's readable once it is. */
	pthread_t thread;
	int busy_fd;
	int err;

	/* For the kind to use. */
	int fds[4];
	u8 *local;
};

struct ref_kind {
	/* Returns false if the kernel doesn't do that. */
	bool (*open)(struct ref *ref);
	void (*close)(struct ref *ref);

	/* Get the reference.  Returns 0 or an errno. */
	int (*get)(struct ref *ref);

	/* Let get() return, i.e. it's a call that puts what it got, if at all. */
	void (*finish)(struct ref *ref);

	/* Put the reference, if it isn't gone, and leave what was read in ref->buf. */
	void (*put)(struct ref *ref);

	/* The holder reads or writes the memory. */
	bool reads;
	bool writes;

	/* An argument for get(). */
	int arg;
};

static size_t ref_size(struct ref *ref)
{
	return ref->nr * page_size;
}

static void *ref_thread(void *data)
{
	struct ref *ref = data;

	ref->err = ref->kind->get(ref);
	return NULL;
}

static void ref_get(struct ref *ref, gmem_data *self, u64 first, u64 nr)
{
	u64 i;

	ref->mem = page_hva(self, first);
	ref->first = first;
	ref->nr = nr;

	for (i = 0; i < nr; i++)
		fill_page((u64 *)(ref->buf + i * page_size),
			  ref->kind->writes ? NEW_TAG : 0, first + i, page_size);

	if (ref->kind->finish) {
		struct pollfd pfd = { .fd = ref->busy_fd, .events = POLLIN };

		/* Once it waits for something else, it has got the pages. */
		kvm_pthread_create(&ref->thread, NULL, ref_thread, ref);
		TEST_ASSERT_EQ(poll(&pfd, 1, -1), 1);
	} else {
		ref->err = ref->kind->get(ref);
		TEST_ASSERT(!ref->err, "Failed to get references, errno = %d (%s)",
			    ref->err, strerror(ref->err));
	}
}

static void ref_put(struct ref *ref, gmem_data *self)
{
	u64 i;

	if (ref->kind->finish) {
		ref->kind->finish(ref);
		kvm_pthread_join(ref->thread, NULL);
		TEST_ASSERT(!ref->err, "The call failed, errno = %d (%s)",
			    ref->err, strerror(ref->err));
	}
	if (ref->kind->put)
		ref->kind->put(ref);

	for (i = ref->first; i < ref->first + ref->nr; i++) {
		u64 *page = (u64 *)(ref->buf + (i - ref->first) * page_size);

		if (ref->kind->writes)
			self->pages[i].tag = NEW_TAG;
		else if (ref->kind->reads)
			TEST_ASSERT(check_page(page, self->pages[i].tag, i, page_size) < 0,
				    "Unexpected contents in page %lu as seen by the holder", i);
	}
}

static bool ref_open(struct ref *ref, gmem_data *self, const struct ref_kind *kind)
{
	memset(ref, 0, sizeof(*ref));
	ref->kind = kind;
	ref->gmem_fd = self->fd;
	ref->buf = kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);

	return !kind->open || kind->open(ref);
}

static void ref_close(struct ref *ref)
{
	if (ref->kind->close)
		ref->kind->close(ref);
	kvm_munmap(ref->buf, NR_PAGES * page_size);
}

/*
 * What holds the references is up to the caller.  References on pages [first,
 * first + nr) show up in all ranges that have such a page, and only there.
 * References that somebody has to memory that's shared, and stays shared, don't
 * matter.
 */
static void expect_eagain(gmem_data *self, u64 start, u64 end, u64 bad)
{
	u64 error_offset;

	TEST_ASSERT_EQ(__try_convert(self->fd, start * page_size,
				     (end - start) * page_size, ATTR_PRIVATE,
				     &error_offset), EAGAIN);
	TEST_ASSERT_EQ(error_offset, bad * page_size);
}

static void check_pinned(gmem_data *self, u64 first, u64 nr)
{
	u64 start, bad;

	/* Up to and including the page, or way beyond. */
	for (start = 0; start < first + nr; start++) {
		bad = max(start, first);
		expect_eagain(self, start, bad + 1, bad);
		expect_eagain(self, start, NR_PAGES, bad);
	}
	check_all(self);

	/* Just outside of the pinned range. */
	if (first)
		convert(self, 0, first, ATTR_PRIVATE);
	if (first + nr < NR_PAGES)
		convert(self, first + nr, NR_PAGES - first - nr, ATTR_PRIVATE);
	check_all(self);

	/* Private memory next to it doesn't hide the page. */
	expect_eagain(self, 0, NR_PAGES, first);
	check_all(self);

	/* To-shared, a nop for the pinned pages. */
	convert(self, first, nr, ATTR_SHARED);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
}

static void check_unpinned(gmem_data *self)
{
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	check_all(self);
	convert(self, 0, NR_PAGES, ATTR_SHARED);
	check_all(self);
}

static const struct {
	u64 first;
	u64 nr;
} pinned_ranges[] = {
	{ 0, 1 },
	{ NR_PAGES / 2, 1 },
	{ NR_PAGES - 1, 1 },
	{ 0, 3 },
	{ NR_PAGES / 2 - 1, 4 },
	{ NR_PAGES - 3, 3 },
	{ 0, NR_PAGES },
};

/* Promise 7.  Returns false if there's no such kind of references. */
static bool check_references(gmem_data *self, const struct ref_kind *kind)
{
	struct ref refs[2];
	u64 first, nr;
	int i;

	for (i = 0; i < ARRAY_SIZE(refs); i++) {
		if (!ref_open(&refs[i], self, kind))
			return false;
	}

	for (i = 0; i < ARRAY_SIZE(pinned_ranges); i++) {
		first = pinned_ranges[i].first;
		nr = pinned_ranges[i].nr;

		host_fill(self, 0, NR_PAGES, OLD_TAG);
		ref_get(&refs[0], self, first, nr);
		check_pinned(self, first, nr);
		ref_put(&refs[0], self);
		check_unpinned(self);
	}

	/* References are reported in order of offset, not of age. */
	host_fill(self, 0, NR_PAGES, OLD_TAG);
	ref_get(&refs[0], self, 9, 1);
	ref_get(&refs[1], self, 3, 1);
	expect_eagain(self, 0, NR_PAGES, 3);
	expect_eagain(self, 4, NR_PAGES, 9);
	check_all(self);
	ref_put(&refs[1], self);
	check_pinned(self, 9, 1);
	ref_put(&refs[0], self);
	check_unpinned(self);

	/* It takes all references to a page to be put. */
	ref_get(&refs[0], self, 5, 1);
	ref_get(&refs[1], self, 5, 1);
	check_pinned(self, 5, 1);
	ref_put(&refs[0], self);
	check_pinned(self, 5, 1);
	ref_put(&refs[1], self);
	check_unpinned(self);

	/* There's no reference to private memory to be had in the first place. */
	convert(self, 0, NR_PAGES, ATTR_PRIVATE);
	refs[0].mem = page_hva(self, 7);
	refs[0].first = 7;
	refs[0].nr = 1;
	TEST_ASSERT_EQ(kind->get(&refs[0]), EFAULT);
	check_all(self);
	convert(self, 0, NR_PAGES, ATTR_SHARED);

	for (i = 0; i < ARRAY_SIZE(refs); i++)
		ref_close(&refs[i]);
	return true;
}

/*
 * Pages in a pipe.
 */

static bool pipe_open(struct ref *ref)
{
	TEST_ASSERT(!pipe(ref->fds), "pipe() failed");
	return true;
}

static void pipe_close(struct ref *ref)
{
	kvm_close(ref->fds[0]);
	kvm_close(ref->fds[1]);
}

static int pipe_get(struct ref *ref)
{
	struct iovec iov = {
		.iov_base = ref->mem,
		.iov_len = ref_size(ref),
	};
	ssize_t r = vmsplice(ref->fds[1], &iov, 1, SPLICE_F_NONBLOCK);

	if (r < 0)
		return errno;

	TEST_ASSERT_EQ(r, ref_size(ref));
	return 0;
}

static void pipe_put(struct ref *ref)
{
	TEST_ASSERT_EQ(read(ref->fds[0], ref->buf, ref_size(ref)), ref_size(ref));
}

static const struct ref_kind in_pipe = {
	.open = pipe_open,
	.close = pipe_close,
	.get = pipe_get,
	.put = pipe_put,
	.reads = true,
};

TEST_F(gmem, vmsplice)
{
	check_references(self, &in_pipe);
}

/*
 * Pages in a socket, on their way to another process without having been copied.
 */

static bool socket_open(struct ref *ref)
{
	int size = 4 * NR_PAGES * page_size;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ref->fds + 2))
		return false;

	TEST_ASSERT(!setsockopt(ref->fds[3], SOL_SOCKET, SO_SNDBUFFORCE, &size,
				sizeof(size)), "SO_SNDBUFFORCE failed");
	return pipe_open(ref);
}

static void socket_close(struct ref *ref)
{
	pipe_close(ref);
	kvm_close(ref->fds[2]);
	kvm_close(ref->fds[3]);
}

static int socket_get(struct ref *ref)
{
	int r = pipe_get(ref);

	if (!r)
		TEST_ASSERT_EQ(splice(ref->fds[0], NULL, ref->fds[3], NULL, ref_size(ref), 0),
			       ref_size(ref));
	return r;
}

static void socket_put(struct ref *ref)
{
	TEST_ASSERT_EQ(recv(ref->fds[2], ref->buf, ref_size(ref), MSG_WAITALL),
		       ref_size(ref));
}

static const struct ref_kind in_socket = {
	.open = socket_open,
	.close = socket_close,
	.get = socket_get,
	.put = socket_put,
	.reads = true,
};

TEST_F(gmem, splice_to_socket)
{
	if (!check_references(self, &in_socket))
		SKIP(return, "Needs CONFIG_UNIX");
}

/*
 * Pages pinned for the long term, the way a driver does.
 */

static bool gup_open(struct ref *ref)
{
	ref->fds[0] = open("/sys/kernel/debug/gup_test", O_RDWR);
	return ref->fds[0] >= 0;
}

static void gup_close(struct ref *ref)
{
	kvm_close(ref->fds[0]);
}

static int gup_get(struct ref *ref)
{
	struct pin_longterm_test args = {
		.addr = (unsigned long)ref->mem,
		.size = ref_size(ref),
		.flags = ref->kind->arg,
	};

	return ioctl(ref->fds[0], PIN_LONGTERM_TEST_START, &args) ? errno : 0;
}

static void gup_put(struct ref *ref)
{
	u64 addr = (unsigned long)ref->buf;
	int r;

	r = ioctl(ref->fds[0], PIN_LONGTERM_TEST_READ, &addr);
	TEST_ASSERT(!r, KVM_IOCTL_ERROR(PIN_LONGTERM_TEST_READ, r));
	r = ioctl(ref->fds[0], PIN_LONGTERM_TEST_STOP);
	TEST_ASSERT(!r, KVM_IOCTL_ERROR(PIN_LONGTERM_TEST_STOP, r));
}

TEST_F(gmem, gup)
{
	struct ref_kind kind = {
		.open = gup_open,
		.close = gup_close,
		.get = gup_get,
		.put = gup_put,
		.reads = true,
	};

	/* PIN_LONGTERM_TEST_FLAG_USE_{WRITE,FAST} */
	for (kind.arg = 0; kind.arg < 4; kind.arg++) {
		if (!check_references(self, &kind))
			SKIP(return, "Needs CONFIG_GUP_TEST, debugfs, and root");
	}
}

/*
 * io_uring, with one request at a time.
 */
struct uring {
	int fd;
	struct io_uring_params params;
	size_t rings_size;
	u8 *rings;
	struct io_uring_sqe *sqes;
};

/* Returns NULL if the kernel doesn't do that. */
static struct uring *uring_open(void)
{
	struct uring *ring = calloc(1, sizeof(*ring));
	struct io_uring_params *p;

	TEST_ASSERT(ring, "calloc() failed");
	p = &ring->params;
	ring->fd = syscall(__NR_io_uring_setup, 1, p);
	if (ring->fd < 0) {
		free(ring);
		return NULL;
	}

	TEST_ASSERT(p->features & IORING_FEAT_SINGLE_MMAP, "There is more than one ring");
	TEST_ASSERT_EQ(p->sq_entries, 1);
	ring->rings_size = max(p->sq_off.array + p->sq_entries * sizeof(u32),
			       p->cq_off.cqes +
			       p->cq_entries * sizeof(struct io_uring_cqe));
	ring->rings = kvm_mmap(ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			       ring->fd);
	ring->sqes = __kvm_mmap(sizeof(*ring->sqes), PROT_READ | PROT_WRITE, MAP_SHARED,
				ring->fd, IORING_OFF_SQES);
	return ring;
}

static void uring_close(struct uring *ring)
{
	kvm_munmap(ring->sqes, sizeof(*ring->sqes));
	kvm_munmap(ring->rings, ring->rings_size);
	kvm_close(ring->fd);
	free(ring);
}

/* Request I/O on a file that has no position. */
static void uring_submit(struct uring *ring, u8 op, u8 flags, int fd, void *mem,
			 size_t len)
{
	u32 *tail = (u32 *)(ring->rings + ring->params.sq_off.tail);

	*ring->sqes = (struct io_uring_sqe) {
		.opcode = op,
		.flags = flags,
		.fd = fd,
		.off = -1ull,
		.addr = (unsigned long)mem,
		.len = len,
	};
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	TEST_ASSERT_EQ(syscall(__NR_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0), 1);
}

/* Returns what comes of the request: the number of bytes, or a negative errno. */
static int uring_wait(struct uring *ring)
{
	struct io_uring_cqe *cqes = (void *)(ring->rings + ring->params.cq_off.cqes);
	u32 *head = (u32 *)(ring->rings + ring->params.cq_off.head);
	u32 *tail = (u32 *)(ring->rings + ring->params.cq_off.tail);
	int r;

	while (__atomic_load_n(tail, __ATOMIC_ACQUIRE) == *head) {
		r = syscall(__NR_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS,
			    NULL, 0);
		TEST_ASSERT(!r, __KVM_SYSCALL_ERROR("io_uring_enter()", r));
	}

	r = cqes[*head % ring->params.cq_entries].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return r;
}

static int uring_do(struct uring *ring, u8 op, u8 flags, int fd, void *mem, size_t len)
{
	uring_submit(ring, op, flags, fd, mem, len);
	return uring_wait(ring);
}

/*
 * Buffers registered with io_uring, whose contents go to, or come from, a pipe.
 */
static bool buffers_open(struct ref *ref)
{
	struct uring *ring = uring_open();

	ref->local = (void *)ring;
	return ring && pipe_open(ref);
}

static void buffers_close(struct ref *ref)
{
	pipe_close(ref);
	uring_close((void *)ref->local);
}

static int buffers_get(struct ref *ref)
{
	struct uring *ring = (void *)ref->local;
	struct iovec iov = {
		.iov_base = ref->mem,
		.iov_len = ref_size(ref),
	};

	return syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS,
		       &iov, 1) ? errno : 0;
}

static void buffers_put(struct ref *ref)
{
	struct uring *ring = (void *)ref->local;
	int len = ref_size(ref);
	int r;

	if (ref->kind->writes) {
		TEST_ASSERT_EQ(write(ref->fds[1], ref->buf, len), len);
		TEST_ASSERT_EQ(uring_do(ring, IORING_OP_READ_FIXED, 0, ref->fds[0],
					ref->mem, len), len);
	} else {
		TEST_ASSERT_EQ(uring_do(ring, IORING_OP_WRITE_FIXED, 0, ref->fds[1],
					ref->mem, len), len);
		TEST_ASSERT_EQ(read(ref->fds[0], ref->buf, len), len);
	}

	r = syscall(__NR_io_uring_register, ring->fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	TEST_ASSERT(!r, __KVM_SYSCALL_ERROR("IORING_UNREGISTER_BUFFERS", r));
}

TEST_F(gmem, io_uring_buffers)
{
	struct ref_kind kind = {
		.open = buffers_open,
		.close = buffers_close,
		.get = buffers_get,
		.put = buffers_put,
	};
	int i;

	for (i = 0; i < 2; i++) {
		kind.reads = !i;
		kind.writes = i;
		if (!check_references(self, &kind))
			SKIP(return, "Needs CONFIG_IO_URING, and io_uring not to be disabled");
	}
}

#define URING_PAGE	7

static void check_io_uring(gmem_data *self, struct uring *ring, u8 flags)
{
	void *mem = page_hva(self, URING_PAGE);
	u64 *buf = malloc(page_size);
	const int len = page_size;
	int fds[2];

	TEST_ASSERT(buf, "malloc() failed");
	TEST_ASSERT(!pipe(fds), "pipe() failed");
	host_fill(self, 0, NR_PAGES, OLD_TAG);

	/* Shared memory is read, and written. */
	TEST_ASSERT_EQ(uring_do(ring, IORING_OP_WRITE, flags, fds[1], mem, len), len);
	TEST_ASSERT_EQ(read(fds[0], buf, len), len);
	TEST_ASSERT(check_page(buf, OLD_TAG, URING_PAGE, len) < 0,
		    "IORING_OP_WRITE wrote unexpected contents");

	fill_page(buf, NEW_TAG, URING_PAGE, len);
	TEST_ASSERT_EQ(write(fds[1], buf, len), len);
	TEST_ASSERT_EQ(uring_do(ring, IORING_OP_READ, flags, fds[0], mem, len), len);
	self->pages[URING_PAGE].tag = NEW_TAG;
	check_all(self);

	/* There's nothing to be read yet, and no reference that would be in the way. */
	uring_submit(ring, IORING_OP_READ, flags, fds[0], mem, len);
	convert(self, URING_PAGE, 1, ATTR_PRIVATE);
	guest_fill(self, URING_PAGE, 1, OLD_TAG + 1);

	/* Private memory isn't written, what has been read is for somebody else ... */
	TEST_ASSERT_EQ(write(fds[1], buf, len), len);
	TEST_ASSERT_EQ(uring_wait(ring), -EFAULT);
	check_all(self);
	TEST_ASSERT_EQ(uring_do(ring, IORING_OP_READ, flags, fds[0], mem, len), -EFAULT);
	check_all(self);

	memset(buf, 0, len);
	TEST_ASSERT_EQ(read(fds[0], buf, len), len);
	TEST_ASSERT(check_page(buf, NEW_TAG, URING_PAGE, len) < 0,
		    "IORING_OP_READ consumed what it couldn't deliver");

	/* ... nor is it read. */
	TEST_ASSERT_EQ(uring_do(ring, IORING_OP_WRITE, flags, fds[1], mem, len), -EFAULT);
	TEST_ASSERT(!fcntl(fds[0], F_SETFL, O_NONBLOCK), "F_SETFL failed");
	TEST_ASSERT(read(fds[0], buf, len) == -1 && errno == EAGAIN,
		    "IORING_OP_WRITE wrote private memory, errno = %d", errno);
	check_all(self);

	convert(self, URING_PAGE, 1, ATTR_SHARED);
	TEST_ASSERT_EQ(uring_do(ring, IORING_OP_WRITE, flags, fds[1], mem, len), len);
	TEST_ASSERT_EQ(read(fds[0], buf, len), len);
	TEST_ASSERT(check_page(buf, OLD_TAG + 1, URING_PAGE, len) < 0,
		    "IORING_OP_WRITE wrote unexpected contents");
	check_unpinned(self);

	kvm_close(fds[0]);
	kvm_close(fds[1]);
	free(buf);
}

/*
 * Promise 6: whoever does the I/O, which is the caller or, for requests that must
 * not be in its way, a thread of the kernel.
 */
TEST_F(gmem, io_uring)
{
	struct uring *ring = uring_open();

	if (!ring)
		SKIP(return, "Needs CONFIG_IO_URING, and io_uring not to be disabled");

	check_io_uring(self, ring, 0);
	check_io_uring(self, ring, IOSQE_ASYNC);
	uring_close(ring);
}

/*
 * Direct I/O in flight, to and from a file that is served by the test, i.e. that
 * takes as long as the test likes.  The file is all there is in its file system.
 */
#define FUSE_DEV	0
#define FUSE_MOUNT	1
#define FUSE_FILE	2

struct fuse_request {
	struct fuse_in_header header;
	union {
		struct fuse_init_in init;
		struct fuse_read_in read;
		struct {
			struct fuse_write_in write;
			u8 data[];
		};
	};
};

static struct fuse_request *fuse_receive(struct ref *ref, u32 opcode)
{
	/* More than the kernel insists on. */
	size_t size = FUSE_MIN_READ_BUFFER + NR_PAGES * page_size;
	struct fuse_request *req = malloc(size);
	ssize_t len;

	TEST_ASSERT(req, "malloc() failed");
	len = read(ref->fds[FUSE_DEV], req, size);
	TEST_ASSERT(len >= (ssize_t)sizeof(req->header) && len == req->header.len,
		    "Bad request, len = %ld, errno = %d", (long)len, errno);
	TEST_ASSERT_EQ(req->header.opcode, opcode);
	return req;
}

static void fuse_reply(struct ref *ref, struct fuse_request *req, void *data, size_t len)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + len,
		.unique = req->header.unique,
	};
	struct iovec iov[] = {
		{ .iov_base = &header, .iov_len = sizeof(header) },
		{ .iov_base = data, .iov_len = len },
	};

	TEST_ASSERT_EQ(writev(ref->fds[FUSE_DEV], iov, ARRAY_SIZE(iov)), header.len);
	free(req);
}

static void *fuse_open_file(void *data)
{
	struct ref *ref = data;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", ref->fds[FUSE_MOUNT]);
	ref->fds[FUSE_FILE] = open(path, O_RDWR | O_DIRECT);
	return NULL;
}

static void fsconfig_set(int fd, const char *key, const char *val)
{
	int r = syscall(__NR_fsconfig, fd, FSCONFIG_SET_STRING, key, val, 0);

	TEST_ASSERT(!r, "Failed to set %s for FUSE, errno = %d", key, errno);
}

static bool fuse_open(struct ref *ref)
{
	struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		/* All of the memory under test fits into one request. */
		.max_write = NR_PAGES * page_size,
	};
	struct fuse_open_out open_out = {
		.open_flags = FOPEN_DIRECT_IO | FOPEN_NOFLUSH,
	};
	struct fuse_request *req;
	pthread_t thread;
	char fd[16];
	int fs, r;

	ref->fds[FUSE_DEV] = open("/dev/fuse", O_RDWR);
	if (ref->fds[FUSE_DEV] < 0)
		return false;

	fs = syscall(__NR_fsopen, "fuse", 0);
	TEST_ASSERT(fs >= 0, __KVM_SYSCALL_ERROR("fsopen()", fs));
	snprintf(fd, sizeof(fd), "%d", ref->fds[FUSE_DEV]);
	fsconfig_set(fs, "fd", fd);
	fsconfig_set(fs, "rootmode", "100600");
	fsconfig_set(fs, "user_id", "0");
	fsconfig_set(fs, "group_id", "0");
	r = syscall(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
	TEST_ASSERT(!r, __KVM_SYSCALL_ERROR("FSCONFIG_CMD_CREATE", r));
	ref->fds[FUSE_MOUNT] = syscall(__NR_fsmount, fs, 0, 0);
	TEST_ASSERT(ref->fds[FUSE_MOUNT] >= 0,
		    __KVM_SYSCALL_ERROR("fsmount()", ref->fds[FUSE_MOUNT]));
	kvm_close(fs);

	req = fuse_receive(ref, FUSE_INIT);
	init.max_readahead = req->init.max_readahead;
	fuse_reply(ref, req, &init, sizeof(init));

	kvm_pthread_create(&thread, NULL, fuse_open_file, ref);
	fuse_reply(ref, fuse_receive(ref, FUSE_OPEN), &open_out, sizeof(open_out));
	kvm_pthread_join(thread, NULL);
	TEST_ASSERT(ref->fds[FUSE_FILE] >= 0, "Failed to open the file");

	ref->busy_fd = ref->fds[FUSE_DEV];
	return true;
}

static void fuse_close(struct ref *ref)
{
	/* Nobody is going to be served anymore, and the kernel knows. */
	kvm_close(ref->fds[FUSE_DEV]);
	kvm_close(ref->fds[FUSE_FILE]);
	kvm_close(ref->fds[FUSE_MOUNT]);
}

/* Read from the file, i.e. write to memory. */
static int fuse_get_read(struct ref *ref)
{
	ssize_t r = pread(ref->fds[FUSE_FILE], ref->mem, ref_size(ref),
			  ref->first * page_size);

	if (r < 0)
		return errno;

	TEST_ASSERT_EQ(r, ref_size(ref));
	return 0;
}

static void fuse_finish_read(struct ref *ref)
{
	struct fuse_request *req = fuse_receive(ref, FUSE_READ);

	TEST_ASSERT_EQ(req->read.offset, ref->first * page_size);
	TEST_ASSERT_EQ(req->read.size, ref_size(ref));
	fuse_reply(ref, req, ref->buf, ref_size(ref));
}

static int fuse_get_write(struct ref *ref)
{
	ssize_t r = pwrite(ref->fds[FUSE_FILE], ref->mem, ref_size(ref),
			   ref->first * page_size);

	if (r < 0)
		return errno;

	TEST_ASSERT_EQ(r, ref_size(ref));
	return 0;
}

static void fuse_finish_write(struct ref *ref)
{
	struct fuse_request *req = fuse_receive(ref, FUSE_WRITE);
	struct fuse_write_out out = { .size = req->write.size };

	TEST_ASSERT_EQ(req->write.offset, ref->first * page_size);
	TEST_ASSERT_EQ(req->write.size, ref_size(ref));
	memcpy(ref->buf, req->data, ref_size(ref));
	fuse_reply(ref, req, &out, sizeof(out));
}

static const struct ref_kind in_direct_read = {
	.open = fuse_open,
	.close = fuse_close,
	.get = fuse_get_read,
	.finish = fuse_finish_read,
	.writes = true,
};

static const struct ref_kind in_direct_write = {
	.open = fuse_open,
	.close = fuse_close,
	.get = fuse_get_write,
	.finish = fuse_finish_write,
	.reads = true,
};

TEST_F(gmem, direct_read)
{
	if (!check_references(self, &in_direct_read))
		SKIP(return, "Needs CONFIG_FUSE_FS, and root");
}

TEST_F(gmem, direct_write)
{
	if (!check_references(self, &in_direct_write))
		SKIP(return, "Needs CONFIG_FUSE_FS, and root");
}

/*
 * Memory that isn't there until the test says so, for those to wait for who have got
 * references to other memory by then.
 */
#define UFFD	0

static bool uffd_open(struct ref *ref, u8 *mem, size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range.start = (unsigned long)mem,
		.range.len = size,
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	ref->fds[UFFD] = syscall(__NR_userfaultfd, O_NONBLOCK);
	if (ref->fds[UFFD] < 0)
		return false;

	TEST_ASSERT(!ioctl(ref->fds[UFFD], UFFDIO_API, &api), "UFFDIO_API failed");
	TEST_ASSERT(!ioctl(ref->fds[UFFD], UFFDIO_REGISTER, &reg),
		    "UFFDIO_REGISTER failed");

	ref->busy_fd = ref->fds[UFFD];
	return true;
}

/* What's waited for is at @mem, and has the contents of @buf. */
static void uffd_finish(struct ref *ref, u8 *mem, u8 *buf, size_t size)
{
	struct uffdio_copy copy = {
		.dst = (unsigned long)mem,
		.src = (unsigned long)buf,
		.len = size,
	};
	struct uffd_msg msg;

	TEST_ASSERT_EQ(read(ref->fds[UFFD], &msg, sizeof(msg)), sizeof(msg));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	TEST_ASSERT_EQ(msg.arg.pagefault.address & ~(page_size - 1), copy.dst);
	TEST_ASSERT(!ioctl(ref->fds[UFFD], UFFDIO_COPY, &copy), "UFFDIO_COPY failed");
}

/*
 * process_vm_readv() and process_vm_writev() in flight: the other end isn't there.
 */
static bool pvm_open(struct ref *ref)
{
	ref->local = kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	return uffd_open(ref, ref->local, NR_PAGES * page_size);
}

static void pvm_close(struct ref *ref)
{
	kvm_close(ref->fds[UFFD]);
	kvm_munmap(ref->local, NR_PAGES * page_size);
}

/* Read or write memory, as seen by the holder, i.e. by the caller. */
static int pvm_get(struct ref *ref)
{
	struct iovec local = { .iov_base = ref->local, .iov_len = ref_size(ref) };
	struct iovec remote = { .iov_base = ref->mem, .iov_len = ref_size(ref) };
	ssize_t r;

	if (ref->kind->writes)
		r = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
	else
		r = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	if (r < 0)
		return errno;

	TEST_ASSERT_EQ(r, ref_size(ref));
	return 0;
}

static void pvm_finish(struct ref *ref)
{
	uffd_finish(ref, ref->local, ref->buf, ref_size(ref));
}

static void pvm_put(struct ref *ref)
{
	memcpy(ref->buf, ref->local, ref_size(ref));
	kvm_madvise(ref->local, NR_PAGES * page_size, MADV_DONTNEED);
}

static const struct ref_kind in_process_vm_readv = {
	.open = pvm_open,
	.close = pvm_close,
	.get = pvm_get,
	.finish = pvm_finish,
	.put = pvm_put,
	.reads = true,
};

static const struct ref_kind in_process_vm_writev = {
	.open = pvm_open,
	.close = pvm_close,
	.get = pvm_get,
	.finish = pvm_finish,
	.put = pvm_put,
	.writes = true,
};

TEST_F(gmem, process_vm_readv)
{
	if (!check_references(self, &in_process_vm_readv))
		SKIP(return, "Needs CONFIG_USERFAULTFD, and root");
}

TEST_F(gmem, process_vm_writev)
{
	if (!check_references(self, &in_process_vm_writev))
		SKIP(return, "Needs CONFIG_USERFAULTFD, and root");
}

/*
 * Pages pinned, or merely got, for the short term: one call gets all of its pages,
 * the last of which isn't there.
 */
#define GUP_TEST	1

static bool gup_short_open(struct ref *ref)
{
	ref->fds[GUP_TEST] = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (ref->fds[GUP_TEST] < 0)
		return false;

	ref->local = kvm_mmap((NR_PAGES + 1) * page_size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	return uffd_open(ref, ref->local + NR_PAGES * page_size, page_size);
}

static void gup_short_close(struct ref *ref)
{
	kvm_close(ref->fds[UFFD]);
	kvm_close(ref->fds[GUP_TEST]);
	kvm_munmap(ref->local, (NR_PAGES + 1) * page_size);
}

static int gup_short_get(struct ref *ref)
{
	u8 *mem = ref->local + NR_PAGES * page_size - ref_size(ref);
	struct gup_test args = {
		.addr = (unsigned long)mem,
		.size = ref_size(ref) + page_size,
		.nr_pages_per_call = ref->nr + 1,
	};
	unsigned long cmd = ref->kind->arg ? PIN_FAST_BENCHMARK : GUP_FAST_BENCHMARK;
	int r;

	/* Have the memory next to what isn't there, and in page tables if possible. */
	TEST_ASSERT(mmap(mem, ref_size(ref), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED | MAP_POPULATE, ref->gmem_fd,
			 ref->first * page_size) == mem, "mmap() failed");

	r = ioctl(ref->fds[GUP_TEST], cmd, &args);
	TEST_ASSERT(!r, KVM_IOCTL_ERROR(cmd, r));

	/* It doesn't tell why it didn't get any. */
	TEST_ASSERT(!args.size || args.size == ref_size(ref) + page_size,
		    "Got 0x%llx bytes", args.size);
	return args.size ? 0 : EFAULT;
}

static void gup_short_finish(struct ref *ref)
{
	uffd_finish(ref, ref->local + NR_PAGES * page_size, ref->buf, page_size);
}

static void gup_short_put(struct ref *ref)
{
	kvm_madvise(ref->local + NR_PAGES * page_size, page_size, MADV_DONTNEED);
}

TEST_F(gmem, gup_short)
{
	struct ref_kind kind = {
		.open = gup_short_open,
		.close = gup_short_close,
		.get = gup_short_get,
		.finish = gup_short_finish,
		.put = gup_short_put,
	};

	for (kind.arg = 0; kind.arg < 2; kind.arg++) {
		if (!check_references(self, &kind))
			SKIP(return, "Needs CONFIG_GUP_TEST, CONFIG_USERFAULTFD and debugfs");
	}
}

/* Promise 7: a reference that's held by another process. */
static void pin_in_child(void *data)
{
	void **args = data;

	pin_page(args[0], args[1]);
}

TEST_F(gmem, other_process)
{
	struct pin pin;
	u64 *buf, i;
	int fds[2];
	void *args[] = { &pin, NULL };

	host_fill(self, 0, NR_PAGES, OLD_TAG);

	/* The child's pipe dies with the child ... */
	args[1] = page_hva(self, 7);
	run_in_child(pin_in_child, args);
	check_unpinned(self);

	/* ... unless the pipe outlives it. */
	TEST_ASSERT(!pipe(fds), "pipe() failed");
	for (i = 0; i < 2; i++) {
		struct iovec iov = {
			.iov_base = page_hva(self, 7 + i),
			.iov_len = page_size,
		};
		pid_t pid = fork();

		TEST_ASSERT(pid >= 0, "fork() failed");
		if (!pid)
			_exit(vmsplice(fds[1], &iov, 1, 0) != page_size);
		TEST_ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	}
	check_pinned(self, 7, 2);

	buf = malloc(page_size);
	TEST_ASSERT(buf, "malloc() failed");
	TEST_ASSERT_EQ(read(fds[0], buf, page_size), page_size);
	TEST_ASSERT(check_page(buf, OLD_TAG, 7, page_size) < 0, "Unexpected contents");
	free(buf);
	check_pinned(self, 8, 1);
	kvm_close(fds[0]);
	kvm_close(fds[1]);
	check_unpinned(self);
}

/*
 * Promises 1 and 7, where the kernel can be expected not to look at all of the
 * range in one go: references that are far apart, and what has been looked at
 * before they're found.
 */
TEST_F(gmem, far_apart)
{
	const u64 offsets[] = {
		0,
		SZ_64M - page_size,
		SZ_64M,
		SZ_128M - page_size,
		SZ_128M,
		3 * SZ_64M - page_size,
	};
	const u64 size = 3 * SZ_64M;
	struct pin pins[ARRAY_SIZE(offsets)];
	u64 error_offset;
	int fd, i, j;
	u8 *mem;

	fd = vm_create_guest_memfd(self->vm, size, MMAP_SHARED);
	mem = mmap_gmem(fd, size);
	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		fill_page((u64 *)(mem + offsets[i]), OLD_TAG, i, page_size);
		pin_page(&pins[i], mem + offsets[i]);
	}

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		TEST_ASSERT_EQ(__try_convert(fd, 0, size, ATTR_PRIVATE, &error_offset),
			       EAGAIN);
		TEST_ASSERT_EQ(error_offset, offsets[i]);
		for (j = 0; j < ARRAY_SIZE(offsets); j++)
			assert_shared(mem + offsets[j], OLD_TAG, j);

		unpin_page_and_check(&pins[i], OLD_TAG, i);
	}

	TEST_ASSERT_EQ(__try_convert(fd, 0, size, ATTR_PRIVATE, &error_offset), 0);
	for (i = 0; i < ARRAY_SIZE(offsets); i++)
		assert_private(mem + offsets[i]);

	kvm_munmap(mem, size);
	kvm_close(fd);
}

/*
 * KVM itself writes to guest memory, by its address in the VMM.  It must not, and
 * doesn't need to be told not to, once that's private.  The guest isn't affected
 * in any other way.
 */
#define KVM_PAGE	5

/* Does KVM write to the page, and to nothing else, when it's given a reason to? */
static void check_kvm_writes(gmem_data *self, void (*poke)(gmem_data *self), bool expected)
{
	u64 *mem = (u64 *)page_hva(self, KVM_PAGE);
	bool written;

	host_fill(self, 0, NR_PAGES, OLD_TAG);
	poke(self);
	written = check_page(mem, OLD_TAG, KVM_PAGE, page_size) >= 0;
	TEST_ASSERT(written == expected, "KVM %s to shared memory",
		    written ? "writes" : "doesn't write");

	fill_page(mem, OLD_TAG, KVM_PAGE, page_size);
	check_host(self);
}

static void check_kvm_access(gmem_data *self, void (*poke)(gmem_data *self),
			     bool has_hva)
{
	int i;

	for (i = 0; i < 2; i++) {
		check_kvm_writes(self, poke, has_hva);

		/* KVM has no reference that would be in the way. */
		convert(self, KVM_PAGE, 1, ATTR_PRIVATE);

		guest_fill(self, KVM_PAGE, 1, NEW_TAG);
		poke(self);
		check_guest(self);
		poke(self);
		check_host(self);

		/* It's what the guest has left there, and then KVM is back. */
		convert(self, KVM_PAGE, 1, ATTR_SHARED);
		check_host(self);
	}
	check_kvm_writes(self, poke, has_hva);
}

#ifdef __x86_64__
/* Stolen time is updated whenever the vCPU runs. */
static void poke_stolen_time(gmem_data *self)
{
	guest_touch(self, 0, 1);
}

static bool start_stolen_time(gmem_data *self)
{
	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		return false;

	vcpu_set_msr(self->vcpu, MSR_KVM_STEAL_TIME, page_gpa(KVM_PAGE) | KVM_MSR_ENABLED);
	return true;
}

/* The clock is updated when the VMM says what time it is. */
static void poke_clock(gmem_data *self)
{
	struct kvm_clock_data data = { .clock = NSEC_PER_SEC };

	vm_ioctl(self->vm, KVM_SET_CLOCK, &data);
	guest_touch(self, 0, 1);
}

/*
 * Promise 6: KVM caches where the clock is, i.e. doesn't look at page tables
 * while the cache is valid.
 */
TEST_F(gmem, kvm_clock)
{
	TEST_ASSERT(kvm_cpu_has(X86_FEATURE_KVM_CLOCKSOURCE2), "There is no clock");

	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, page_gpa(KVM_PAGE) | KVM_MSR_ENABLED);
	check_kvm_access(self, poke_clock, variant->slot_has_hva);
}
#else
static void guest_start_stolen_time(void)
{
	struct arm_smccc_res res;

	smccc_hvc(ARM_SMCCC_HV_PV_TIME_ST, 0, 0, 0, 0, 0, 0, 0, &res);
	GUEST_ASSERT_EQ(res.a0, page_gpa(KVM_PAGE));
}

/* Stolen time is initialized whenever the guest asks where it is. */
static void poke_stolen_time(gmem_data *self)
{
	guest_call(self->vcpu, guest_start_stolen_time);
}

static bool start_stolen_time(gmem_data *self)
{
	u64 ipa = page_gpa(KVM_PAGE);

	if (__vcpu_has_device_attr(self->vcpu, KVM_ARM_VCPU_PVTIME_CTRL,
				   KVM_ARM_VCPU_PVTIME_IPA))
		return false;

	vcpu_device_attr_set(self->vcpu, KVM_ARM_VCPU_PVTIME_CTRL,
			     KVM_ARM_VCPU_PVTIME_IPA, &ipa);
	return true;
}
#endif

/*
 * Promises 6 and 18: KVM writes to guest_memfd's page as long as that is shared,
 * whatever is mapped at userspace_addr.
 */
TEST_F(gmem, stolen_time)
{
	if (!start_stolen_time(self))
		SKIP(return, "Needs CONFIG_SCHED_INFO");

	check_kvm_access(self, poke_stolen_time, true);
}

/*
 * Promise 6: a device in the kernel, with its rings and buffers in guest memory.
 * The device is told where in the VMM that is, once, and from then on accesses
 * it on behalf of the VMM, but from a thread of its own.  Private memory is
 * EFAULT, which is for the VMM to be told about, and to deal with.
 *
 * As there's nobody for the guest to connect to, the device answers all requests
 * to do so with a packet that says no.
 */
#define VHOST_RINGS_PAGE	2
#define VHOST_TX_PAGE		5
#define VHOST_RX_PAGE		9

#define VHOST_RX		0
#define VHOST_TX		1
#define VHOST_NR_VQS		2

#define VHOST_NR_DESC		8
#define VHOST_RING_ALIGN	64
#define VHOST_RING_SIZE		1024

#define VHOST_GUEST_CID		3
#define VHOST_HOST_CID		2

struct vhost {
	gmem_data *self;
	int fd;
	struct {
		struct vring vring;
		int kick;
		int call;
		int err;
	} vqs[VHOST_NR_VQS];
};

enum vhost_event {
	VHOST_ANSWER,
	VHOST_RX_ERROR,
	VHOST_TX_ERROR,
	VHOST_NR_EVENTS,
};

static void vhost_ioctl(struct vhost *vhost, unsigned long cmd, void *arg)
{
	int r = ioctl(vhost->fd, cmd, arg);

	TEST_ASSERT(!r, "vhost ioctl 0x%lx failed, errno = %d (%s)", cmd, errno,
		    strerror(errno));
}

static int vhost_eventfd(struct vhost *vhost, unsigned long cmd, unsigned int vq)
{
	struct vhost_vring_file file = {
		.index = vq,
		.fd = kvm_new_eventfd(),
	};

	vhost_ioctl(vhost, cmd, &file);
	return file.fd;
}

static void vhost_open_vq(struct vhost *vhost, unsigned int vq)
{
	struct vring *vring = &vhost->vqs[vq].vring;
	struct vhost_vring_state state = { .index = vq };
	struct vhost_vring_addr addr = { .index = vq };

	vring_init(vring, VHOST_NR_DESC, page_hva(vhost->self, VHOST_RINGS_PAGE) +
		   vq * VHOST_RING_SIZE, VHOST_RING_ALIGN);

	vhost_ioctl(vhost, VHOST_SET_VRING_BASE, &state);
	state.num = VHOST_NR_DESC;
	vhost_ioctl(vhost, VHOST_SET_VRING_NUM, &state);

	addr.desc_user_addr = (unsigned long)vring->desc;
	addr.avail_user_addr = (unsigned long)vring->avail;
	addr.used_user_addr = (unsigned long)vring->used;
	vhost_ioctl(vhost, VHOST_SET_VRING_ADDR, &addr);

	vhost->vqs[vq].kick = vhost_eventfd(vhost, VHOST_SET_VRING_KICK, vq);
	vhost->vqs[vq].call = vhost_eventfd(vhost, VHOST_SET_VRING_CALL, vq);
	vhost->vqs[vq].err = vhost_eventfd(vhost, VHOST_SET_VRING_ERR, vq);
}

static void vhost_run(struct vhost *vhost, int on)
{
	vhost_ioctl(vhost, VHOST_VSOCK_SET_RUNNING, &on);
}

static bool vhost_open(struct vhost *vhost, gmem_data *self)
{
	struct {
		struct vhost_memory memory;
		struct vhost_memory_region region;
	} table = {
		.memory.nregions = 1,
		.region.guest_phys_addr = TEST_GPA,
		.region.memory_size = self->size,
		.region.userspace_addr = (unsigned long)self->mem,
	};
	u64 features = BIT_ULL(VIRTIO_F_VERSION_1);
	u64 cid = VHOST_GUEST_CID;
	int vq;

	vhost->self = self;
	vhost->fd = open("/dev/vhost-vsock", O_RDWR);
	if (vhost->fd < 0)
		return false;

	vhost_ioctl(vhost, VHOST_SET_OWNER, NULL);
	vhost_ioctl(vhost, VHOST_SET_FEATURES, &features);
	vhost_ioctl(vhost, VHOST_SET_MEM_TABLE, &table);
	for (vq = 0; vq < VHOST_NR_VQS; vq++)
		vhost_open_vq(vhost, vq);
	vhost_ioctl(vhost, VHOST_VSOCK_SET_GUEST_CID, &cid);
	vhost_run(vhost, 1);
	return true;
}

static void vhost_close(struct vhost *vhost)
{
	int vq;

	kvm_close(vhost->fd);
	for (vq = 0; vq < VHOST_NR_VQS; vq++) {
		kvm_close(vhost->vqs[vq].kick);
		kvm_close(vhost->vqs[vq].call);
		kvm_close(vhost->vqs[vq].err);
	}
}

static void vhost_queue(struct vhost *vhost, unsigned int vq, u64 page, u16 flags)
{
	struct vring *vring = &vhost->vqs[vq].vring;
	u16 nr = vring->avail->idx % VHOST_NR_DESC;

	vring->desc[nr] = (struct vring_desc) {
		.addr = page_gpa(page),
		.len = sizeof(struct virtio_vsock_hdr),
		.flags = flags,
	};
	vring->avail->ring[nr] = nr;

	/* The device must not see the index before what it stands for. */
	__atomic_store_n(&vring->avail->idx, vring->avail->idx + 1, __ATOMIC_RELEASE);
}

/* Prepare to send a packet, and to receive the answer. */
static void vhost_queue_request(struct vhost *vhost)
{
	struct virtio_vsock_hdr *hdr = (void *)page_hva(vhost->self, VHOST_TX_PAGE);

	*hdr = (struct virtio_vsock_hdr) {
		.src_cid = VHOST_GUEST_CID,
		.dst_cid = VHOST_HOST_CID,
		.src_port = 1,
		.dst_port = 1,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = VIRTIO_VSOCK_OP_REQUEST,
	};
	vhost_queue(vhost, VHOST_RX, VHOST_RX_PAGE, VRING_DESC_F_WRITE);
	vhost_queue(vhost, VHOST_TX, VHOST_TX_PAGE, 0);
}

/* Have the device look at the queue, and wait for what comes of it, one bit each. */
static unsigned int vhost_kick(struct vhost *vhost)
{
	struct pollfd pfds[] = {
		[VHOST_ANSWER] = { .fd = vhost->vqs[VHOST_RX].call },
		[VHOST_RX_ERROR] = { .fd = vhost->vqs[VHOST_RX].err },
		[VHOST_TX_ERROR] = { .fd = vhost->vqs[VHOST_TX].err },
	};
	unsigned int events = 0;
	u64 val = 1;
	int i;

	for (i = 0; i < VHOST_NR_EVENTS; i++)
		pfds[i].events = POLLIN;

	TEST_ASSERT_EQ(write(vhost->vqs[VHOST_TX].kick, &val, sizeof(val)), sizeof(val));
	TEST_ASSERT(poll(pfds, VHOST_NR_EVENTS, -1) > 0, "poll() failed");

	/* Once it's stopped, there isn't anything else to come. */
	vhost_run(vhost, 0);
	TEST_ASSERT(poll(pfds, VHOST_NR_EVENTS, 0) > 0, "poll() failed");
	for (i = 0; i < VHOST_NR_EVENTS; i++) {
		if (!pfds[i].revents)
			continue;

		TEST_ASSERT_EQ(read(pfds[i].fd, &val, sizeof(val)), sizeof(val));
		events |= BIT(i);
	}
	return events;
}

static void check_vhost_answers(struct vhost *vhost)
{
	struct virtio_vsock_hdr *hdr = (void *)page_hva(vhost->self, VHOST_RX_PAGE);

	memset(hdr, 0, sizeof(*hdr));
	vhost_queue_request(vhost);
	TEST_ASSERT_EQ(vhost_kick(vhost), BIT(VHOST_ANSWER));
	TEST_ASSERT_EQ(hdr->op, VIRTIO_VSOCK_OP_RST);
	TEST_ASSERT_EQ(hdr->dst_cid, VHOST_GUEST_CID);
	vhost_run(vhost, 1);
}

TEST_F(gmem, vhost)
{
	struct vhost vhost = {};
	u64 *rx_page = (u64 *)page_hva(self, VHOST_RX_PAGE);

	if (!vhost_open(&vhost, self))
		SKIP(return, "Needs CONFIG_VHOST_VSOCK, and root");

	/* The device has no reference that would be in the way. */
	check_vhost_answers(&vhost);
	vhost_queue_request(&vhost);
	convert(self, VHOST_RX_PAGE, 1, ATTR_PRIVATE);

	/* It can't write to what's private, and what the guest has there stays. */
	guest_fill(self, VHOST_RX_PAGE, 1, NEW_TAG);
	TEST_ASSERT_EQ(vhost_kick(&vhost), BIT(VHOST_RX_ERROR));
	guest_do(self->vcpu, GUEST_CHECK, page_gpa(VHOST_RX_PAGE), VHOST_RX_PAGE, 1, NEW_TAG);
	convert(self, VHOST_RX_PAGE, 1, ATTR_SHARED);
	assert_shared(rx_page, NEW_TAG, VHOST_RX_PAGE);

	vhost_run(&vhost, 1);
	check_vhost_answers(&vhost);

	/* It can't read, i.e. send, what's private. */
	fill_page(rx_page, OLD_TAG, VHOST_RX_PAGE, page_size);
	vhost_queue_request(&vhost);
	convert(self, VHOST_TX_PAGE, 1, ATTR_PRIVATE);
	TEST_ASSERT_EQ(vhost_kick(&vhost), BIT(VHOST_TX_ERROR));
	assert_shared(rx_page, OLD_TAG, VHOST_RX_PAGE);
	convert(self, VHOST_TX_PAGE, 1, ATTR_SHARED);

	vhost_run(&vhost, 1);
	check_vhost_answers(&vhost);

	/*
	 * It can't even find out what there is to do, until it can.  It may not be
	 * done with looking for something to receive since it was started.
	 */
	fill_page(rx_page, OLD_TAG, VHOST_RX_PAGE, page_size);
	vhost_queue_request(&vhost);
	convert(self, VHOST_RINGS_PAGE, 1, ATTR_PRIVATE);
	TEST_ASSERT_EQ(vhost_kick(&vhost) & ~BIT(VHOST_RX_ERROR), BIT(VHOST_TX_ERROR));
	assert_shared(rx_page, OLD_TAG, VHOST_RX_PAGE);
	convert(self, VHOST_RINGS_PAGE, 1, ATTR_SHARED);

	vhost_run(&vhost, 1);
	TEST_ASSERT_EQ(vhost_kick(&vhost), BIT(VHOST_ANSWER));
	vhost_run(&vhost, 1);
	check_vhost_answers(&vhost);

	vhost_close(&vhost);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	gmem_test_init(&argc, argv);

	return test_harness_run(argc, argv);
}
