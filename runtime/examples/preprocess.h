/* preprocess.h: files into the memory of a network's input. */
#ifndef PREPROCESS_H
#define PREPROCESS_H

#include <dna_runtime.h>

#include "files.h"

typedef enum layout { LAYOUT_FROM_SHAPE, LAYOUT_NCHW, LAYOUT_NHWC } layout;

/* A picture's value v of 0 to 255 becomes (v / 255 - mean) / std. */
typedef struct preprocessing {
    float mean[3], std[3];
    int32_t resize; /* the shorter side becomes this long, then the center is cut out; 0: sizes must agree */
    layout layout;
    bool bgr;
} preprocessing;

/* By the ending: .npy (dtype and shape must be the input's), .ppm or .pgm (see preprocessing), else raw bytes (as many as
 * the input has). false leaves a sentence in error, see files.h. */
bool load_input(const char *path, const dna_tensor_info *info, const preprocessing *how, void *memory, char *error);

#endif
