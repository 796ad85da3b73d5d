/* parallel.h: sharing work among threads; OpenMP gives the threads, if the compiler has it. */
#ifndef MERA_PARALLEL_H
#define MERA_PARALLEL_H

#include <stdint.h>

#define MAX_THREADS 256

/* The threads there are: 1 without OpenMP. */
int parallel_threads(void);

/* Calls run(user, step, task, thread) for every task 0..tasks[step]-1 of every step, by up to `threads` threads. The tasks
 * of a step are independent; a step begins when the one before it is complete. Counts are below 2^40, steps below 2^23. */
void parallel_steps(int threads, int64_t steps, const int64_t *tasks,
                    void (*run)(void *user, int64_t step, int64_t task, int thread), void *user);

#endif
