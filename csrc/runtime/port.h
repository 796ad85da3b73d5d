/* port.h: the border of a region: PyTorch's tensor on the host's side, the DNA's int8 NHWC tensor on the other. */
#ifndef MERA_RUNTIME_PORT_H
#define MERA_RUNTIME_PORT_H

#include "host.h"
#include "json.h"

enum { PORT_MAX_AXES = 32 };

typedef struct port {
    const char *value; /* the host's name for it */
    host_tensor type;  /* the host's: float32 if real, else int8 */
    int32_t axis_count;
    int64_t sizes[PORT_MAX_AXES]; /* the DNA's memory as an array: its axes, slowest first */
    int32_t order[PORT_MAX_AXES]; /* those axes in the order in which PyTorch's tensor has them */
    int64_t dna[4];               /* N H W C */
    int64_t elements;
    float scale;
    int32_t zero_point;
    bool real;  /* the port quantizes or dequantizes */
    bool image; /* PyTorch's NCHW, the DNA's NHWC */
    bool plain; /* both lie in memory alike */
} port;

/* From a deployment's JSON. MERA_CORRUPT if anything does not fit together; the scale may be used without a check. */
mera_status port_read(mera_context *ctx, const char *region, const json_value *json, port *out);

/* Bytes of scratch that store and fetch need, at most. */
static inline size_t port_scratch_bytes(const port *p) { return (size_t)p->elements; }

/* PyTorch's tensor -> int8 in the DNA's order, and back. */
mera_status port_store(mera_context *ctx, const port *p, const void *x, int8_t *q, void *scratch);
mera_status port_fetch(mera_context *ctx, const port *p, const int8_t *q, void *x, void *scratch);

#endif
