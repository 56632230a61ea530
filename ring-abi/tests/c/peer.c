/*
 * The peer of tests/macros.rs: both halves of every ring by Xen's own macros, and Xen's own structures. Built once
 * as it is and once with -DABI32, where 64-bit numbers are aligned as on i386 (the x86_32-abi protocol).
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __XEN_INTERFACE_VERSION__ 0x00040d00 /* the macros take their barriers from here */
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()

#ifdef ABI32
typedef uint64_t uint64_4_t __attribute__((aligned(4)));
#define uint64_t uint64_4_t
#endif
#include <xen/io/blkif.h>
#include <xen/io/netif.h>
#ifdef ABI32
#undef uint64_t
_Static_assert(sizeof(blkif_request_t) == 108, "request");
_Static_assert(sizeof(blkif_response_t) == 12, "response");
#else
_Static_assert(sizeof(blkif_request_t) == 112, "request");
_Static_assert(sizeof(blkif_response_t) == 16, "response");
#endif

#define RING(name, request_t, response_t)                                                                           \
    static name##_front_ring_t name##_front;                                                                        \
    static name##_back_ring_t name##_back;                                                                          \
    void name##_front_init(void *page, size_t len)                                                                  \
    {                                                                                                               \
        SHARED_RING_INIT((name##_sring_t *)page);                                                                   \
        FRONT_RING_INIT(&name##_front, (name##_sring_t *)page, len);                                                \
    }                                                                                                               \
    void name##_back_init(void *page, size_t len) { BACK_RING_INIT(&name##_back, (name##_sring_t *)page, len); }    \
    unsigned name##_size(void) { return RING_SIZE(&name##_front); }                                                 \
    int name##_front_push(const request_t *r)                                                                       \
    {                                                                                                               \
        if (RING_FULL(&name##_front))                                                                               \
            return 0;                                                                                               \
        name##_put(RING_GET_REQUEST(&name##_front, name##_front.req_prod_pvt++), r);                                \
        return 1;                                                                                                   \
    }                                                                                                               \
    int name##_front_commit(void)                                                                                   \
    {                                                                                                               \
        int notify;                                                                                                 \
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&name##_front, notify);                                                 \
        return notify;                                                                                              \
    }                                                                                                               \
    int name##_front_pop(response_t *r)                                                                             \
    {                                                                                                               \
        if (!RING_HAS_UNCONSUMED_RESPONSES(&name##_front))                                                          \
            return 0;                                                                                               \
        memcpy(r, RING_GET_RESPONSE(&name##_front, name##_front.rsp_cons++), sizeof(*r));                           \
        return 1;                                                                                                   \
    }                                                                                                               \
    int name##_front_arm(void)                                                                                      \
    {                                                                                                               \
        int work;                                                                                                   \
        RING_FINAL_CHECK_FOR_RESPONSES(&name##_front, work);                                                        \
        return !!work;                                                                                              \
    }                                                                                                               \
    int name##_back_pop(request_t *r)                                                                               \
    {                                                                                                               \
        if (!RING_HAS_UNCONSUMED_REQUESTS(&name##_back))                                                            \
            return 0;                                                                                               \
        RING_COPY_REQUEST(&name##_back, name##_back.req_cons++, r);                                                 \
        return 1;                                                                                                   \
    }                                                                                                               \
    void name##_back_push(const response_t *r)                                                                      \
    {                                                                                                               \
        memcpy(RING_GET_RESPONSE(&name##_back, name##_back.rsp_prod_pvt++), r, sizeof(*r));                         \
    }                                                                                                               \
    int name##_back_commit(void)                                                                                    \
    {                                                                                                               \
        int notify;                                                                                                 \
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&name##_back, notify);                                                 \
        return notify;                                                                                              \
    }                                                                                                               \
    int name##_back_arm(void)                                                                                       \
    {                                                                                                               \
        int work;                                                                                                   \
        RING_FINAL_CHECK_FOR_REQUESTS(&name##_back, work);                                                          \
        return !!work;                                                                                              \
    }

/* What a request of the block interface says, whatever its kind and layout: `Flat` of tests/macros.rs. */
struct flat {
    unsigned long long id, sector_number, nr_sectors;
    uint32_t gref[11], indirect_gref[8];
    uint16_t handle, indirect_segments;
    uint8_t operation, nr_segments, flag, indirect_op;
    uint8_t first[11], last[11];
};

void flatten(const blkif_request_t *r, struct flat *f)
{
    memset(f, 0, sizeof(*f));
    f->operation = r->operation;
    f->id = r->id;
    if (r->operation == BLKIF_OP_DISCARD) {
        const struct blkif_request_discard *d = (const void *)r;
        f->flag = d->flag, f->handle = d->handle, f->id = d->id;
        f->sector_number = d->sector_number, f->nr_sectors = d->nr_sectors;
    } else if (r->operation == BLKIF_OP_INDIRECT) {
        const struct blkif_request_indirect *i = (const void *)r;
        f->indirect_op = i->indirect_op, f->indirect_segments = i->nr_segments, f->id = i->id;
        f->sector_number = i->sector_number, f->handle = i->handle;
        memcpy(f->indirect_gref, i->indirect_grefs, sizeof(f->indirect_gref));
    } else {
        f->nr_segments = r->nr_segments, f->handle = r->handle, f->sector_number = r->sector_number;
        for (unsigned i = 0; i < r->nr_segments; i++)
            f->gref[i] = r->seg[i].gref, f->first[i] = r->seg[i].first_sect, f->last[i] = r->seg[i].last_sect;
    }
}

/* Only what the request has is written, so that two pages can be compared byte by byte. */
static void blkif_put(blkif_request_t *r, const blkif_request_t *from)
{
    if (from->operation == BLKIF_OP_DISCARD) {
        memcpy(r, from, sizeof(struct blkif_request_discard));
    } else if (from->operation == BLKIF_OP_INDIRECT) {
        struct blkif_request_indirect *to = (void *)r;
        const struct blkif_request_indirect *i = (const void *)from;
        memcpy(to, i, offsetof(struct blkif_request_indirect, indirect_grefs) + sizeof(i->indirect_grefs));
    } else {
        memcpy(r, from, offsetof(blkif_request_t, seg) + from->nr_segments * sizeof(r->seg[0]));
    }
}

void unflatten(const struct flat *f, blkif_request_t *r)
{
    memset(r, 0, sizeof(*r));
    r->operation = f->operation;
    if (f->operation == BLKIF_OP_DISCARD) {
        struct blkif_request_discard *d = (void *)r;
        d->flag = f->flag, d->handle = f->handle, d->id = f->id;
        d->sector_number = f->sector_number, d->nr_sectors = f->nr_sectors;
    } else if (f->operation == BLKIF_OP_INDIRECT) {
        struct blkif_request_indirect *i = (void *)r;
        i->indirect_op = f->indirect_op, i->nr_segments = f->indirect_segments, i->id = f->id;
        i->sector_number = f->sector_number, i->handle = f->handle;
        memcpy(i->indirect_grefs, f->indirect_gref, sizeof(f->indirect_gref));
    } else {
        r->nr_segments = f->nr_segments, r->handle = f->handle, r->id = f->id, r->sector_number = f->sector_number;
        for (unsigned i = 0; i < f->nr_segments; i++) {
            r->seg[i].gref = f->gref[i];
            r->seg[i].first_sect = f->first[i], r->seg[i].last_sect = f->last[i];
        }
    }
}

struct flat_response {
    unsigned long long id;
    int16_t status;
    uint8_t operation;
};

void unflatten_response(const struct flat_response *f, blkif_response_t *r)
{
    memset(r, 0, sizeof(*r));
    r->id = f->id, r->operation = f->operation, r->status = f->status;
}

void flatten_response(const blkif_response_t *r, struct flat_response *f)
{
    memset(f, 0, sizeof(*f));
    f->id = r->id, f->operation = r->operation, f->status = r->status;
}

#define netif_tx_put(to, from) memcpy(to, from, sizeof(*(from)))
#define netif_rx_put(to, from) memcpy(to, from, sizeof(*(from)))
#define xen_netif_ctrl_put(to, from) memcpy(to, from, sizeof(*(from)))

RING(blkif, blkif_request_t, blkif_response_t)
RING(netif_tx, struct netif_tx_request, struct netif_tx_response)
RING(netif_rx, struct netif_rx_request, struct netif_rx_response)
RING(xen_netif_ctrl, struct xen_netif_ctrl_request, struct xen_netif_ctrl_response)

/* Structures of the network interface by value: fields in the order of the header. */
void make_tx_request(struct netif_tx_request *r, uint32_t gref, uint16_t offset, uint16_t flags, uint16_t id,
                     uint16_t size)
{
    *r = (struct netif_tx_request){ .gref = gref, .offset = offset, .flags = flags, .id = id, .size = size };
}

void make_rx_response(struct netif_rx_response *r, uint16_t id, uint16_t offset, uint16_t flags, int16_t status)
{
    *r = (struct netif_rx_response){ .id = id, .offset = offset, .flags = flags, .status = status };
}

void make_gso(struct netif_extra_info *e, uint8_t flags, uint16_t size, uint8_t type)
{
    memset(e, 0, sizeof(*e));
    e->type = XEN_NETIF_EXTRA_TYPE_GSO, e->flags = flags, e->u.gso.size = size, e->u.gso.type = type;
}

void make_mcast(struct netif_extra_info *e, uint8_t type, const uint8_t *address)
{
    memset(e, 0, sizeof(*e));
    e->type = type;
    memcpy(e->u.mcast.addr, address, 6);
}

void make_hash(struct netif_extra_info *e, uint8_t type, uint8_t algorithm, const uint8_t *value)
{
    memset(e, 0, sizeof(*e));
    e->type = XEN_NETIF_EXTRA_TYPE_HASH, e->u.hash.type = type, e->u.hash.algorithm = algorithm;
    memcpy(e->u.hash.value, value, 4);
}
