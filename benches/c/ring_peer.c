/*
 * The peer of rows R1 and R2: Xen's own ring macros and barriers (libxen-dev), driven the way its drivers
 * drive them. Built at run time with `cc -O3`, so that the workspace builds where libxen-dev is missing.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <xenctrl.h> /* xen_mb, xen_rmb, xen_wmb */
#include <xen/io/blkif.h>

/* The value is looked at, as far as the compiler knows: it must exist in memory, whole. */
#define consume(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

static void fill(blkif_request_t *r, const blkif_request_t *from, uint64_t id)
{
    r->operation = from->operation;
    r->nr_segments = from->nr_segments;
    r->handle = from->handle;
    r->id = id;
    r->sector_number = from->sector_number;
    for (unsigned i = 0; i < from->nr_segments; i++)
        r->seg[i] = from->seg[i];
}

static blkif_request_t prepared(uint8_t segments)
{
    blkif_request_t r = { .operation = BLKIF_OP_READ, .nr_segments = segments, .sector_number = 2048 };
    for (unsigned i = 0; i < segments; i++)
        r.seg[i] = (struct blkif_request_segment){ .gref = 100 + i, .first_sect = 0, .last_sect = 7 };
    return r;
}

static void answer(blkif_back_ring_t *back, const blkif_request_t *req)
{
    blkif_response_t *rsp = RING_GET_RESPONSE(back, back->rsp_prod_pvt++);
    memset(rsp, 0, sizeof(*rsp));
    rsp->id = req->id;
    rsp->operation = req->operation;
    rsp->status = BLKIF_RSP_OKAY;
}

/* What is there is answered and published; the number of answers, or -1 for a peer that lies. */
static int serve(blkif_back_ring_t *back)
{
    RING_IDX rc = back->req_cons, rp = back->sring->req_prod;
    int notify, served = 0;
    xen_rmb();
    if (RING_REQUEST_PROD_OVERFLOW(back, rp))
        return -1;
    for (; rc != rp; served++) {
        blkif_request_t req;
        if (RING_REQUEST_CONS_OVERFLOW(back, rc))
            break;
        RING_COPY_REQUEST(back, rc, &req);
        back->req_cons = ++rc;
        consume(&req);
        answer(back, &req);
    }
    if (served) {
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(back, notify);
        consume(&notify);
    }
    return served;
}

static int reap(blkif_front_ring_t *front)
{
    RING_IDX rc = front->rsp_cons, rp = front->sring->rsp_prod;
    int reaped = 0;
    xen_rmb();
    if (RING_RESPONSE_PROD_OVERFLOW(front, rp))
        return -1;
    for (; rc != rp; reaped++) {
        blkif_response_t rsp;
        RING_COPY_RESPONSE(front, rc, &rsp);
        front->rsp_cons = ++rc;
        consume(&rsp);
    }
    return reaped;
}

static void ask(blkif_front_ring_t *front, const blkif_request_t *request, uint64_t *id, unsigned count)
{
    int notify;
    for (unsigned i = 0; i < count && !RING_FULL(front); i++)
        fill(RING_GET_REQUEST(front, front->req_prod_pvt++), request, (*id)++);
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(front, notify);
    consume(&notify);
}

void peer_init(void *page)
{
    SHARED_RING_INIT((blkif_sring_t *)page);
}

/* Both halves alternately on one thread; the requests answered. */
uint64_t peer_one_thread(void *page, size_t len, uint32_t batches, uint32_t batch, uint8_t segments)
{
    blkif_front_ring_t front;
    blkif_back_ring_t back;
    blkif_request_t request = prepared(segments);
    uint64_t id = 0, done = 0;
    peer_init(page);
    FRONT_RING_INIT(&front, (blkif_sring_t *)page, len);
    BACK_RING_INIT(&back, (blkif_sring_t *)page, len);
    for (uint32_t i = 0; i < batches; i++) {
        consume(&request);
        ask(&front, &request, &id, batch);
        serve(&back);
        done += reap(&front);
    }
    return done;
}

/* The front half, polling: fills the ring whenever `batch` slots are free. */
void peer_front(void *page, size_t len, uint64_t requests, uint32_t batch, uint8_t segments)
{
    blkif_front_ring_t front;
    blkif_request_t request = prepared(segments);
    uint64_t id = 0, done = 0;
    FRONT_RING_INIT(&front, (blkif_sring_t *)page, len);
    while (done < requests) {
        int reaped = reap(&front);
        if (id < requests && RING_FREE_REQUESTS(&front) >= batch) {
            consume(&request);
            ask(&front, &request, &id, batch);
        } else if (reaped == 0) {
            __builtin_ia32_pause();
        }
        done += reaped;
    }
}

/* The back half, polling. */
void peer_back(void *page, size_t len, uint64_t requests)
{
    blkif_back_ring_t back;
    uint64_t done = 0;
    BACK_RING_INIT(&back, (blkif_sring_t *)page, len);
    while (done < requests) {
        int served = serve(&back);
        if (served == 0)
            __builtin_ia32_pause();
        done += served;
    }
}
