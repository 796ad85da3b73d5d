/* inner.h: what mera_torch's Python takes from the runtime beyond dna_runtime.h. Not for others. */
#ifndef MERA_RUNTIME_INNER_H
#define MERA_RUNTIME_INNER_H

#include "../dna_runtime.h"
#include "../mera.h"

/* ---- cffi: begin ---- */

/* As dna_deployment_load; with allocations that fail from number fail_after on (for tests), and, if host_only, without
 * regions and the checks of their files: enough to know whether steps need PyTorch. */
dna_status deployment_open(const char *folder, int64_t fail_after, int32_t host_only, dna_deployment **deployment,
                           dna_error *error);

/* Runs a region in place of the driver of devices: inputs and outputs are the DNA's. Fills stats, or the message. */
typedef dna_status (*runner_executor)(void *user, int32_t region, int32_t input_count, const void *const *inputs,
                                      const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                                      const int64_t *output_bytes, mera_stats *stats, char *message, size_t message_bytes);

/* As dna_runner_create and dna_request_create, with allocations that fail from number fail_after on. executor: NULL, or
 * what runs the regions on target IP; no device is opened then. */
dna_status runner_open(dna_deployment *deployment, const dna_runner_options *options, runner_executor executor, void *user,
                       int64_t fail_after, dna_runner **runner, dna_error *error);
dna_status request_open(dna_runner *runner, int64_t fail_after, dna_request **request, dna_error *error);

/* What a region is, for tables and traces: its graph, its program and the program's timing, made if they are not there yet
 * (each may be NULL: not wanted). They live as long as the deployment, and are only to be read. */
dna_status deployment_region(dna_deployment *deployment, int32_t region, mera_graph **graph, mera_program **program,
                             mera_simulator **timing, dna_error *error);

/* ---- cffi: end ---- */

#endif
