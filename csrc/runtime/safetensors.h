/* safetensors.h: reading a safetensors file: tensors by name. */
#ifndef MERA_RUNTIME_SAFETENSORS_H
#define MERA_RUNTIME_SAFETENSORS_H

#include "host.h"

typedef struct stored_tensor {
    const char *name;
    host_tensor type;
    const void *data; /* in the arena, aligned to 64 bytes; NULL if host operators do not know the tensor's dtype */
} stored_tensor;

/* MERA_CORRUPT with `what` and reason, MERA_OUT_OF_MEMORY. */
mera_status safetensors_read(mera_context *ctx, arena *memory, const char *what, const uint8_t *data, size_t bytes,
                             int32_t *count, stored_tensor **tensors);

#endif
