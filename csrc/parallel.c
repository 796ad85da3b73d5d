/* parallel.c: one team of threads for a whole sequence of steps. A team a step would cost more: OpenMP's barriers spin, and
 * wait for each thread even if there is nothing left for it to do. Here a step ends when its work is done. */
#include "parallel.h"

#ifdef _OPENMP
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#define STEP_SHIFT 40
#define TASK_MASK (((int64_t)1 << STEP_SHIFT) - 1)

typedef struct team {
    int64_t steps;
    const int64_t *tasks;
    void (*run)(void *user, int64_t step, int64_t task, int thread);
    void *user;
    _Atomic int64_t next; /* the current step << STEP_SHIFT | its next task */
    _Atomic int64_t done; /* tasks, of all steps */
    int64_t target; /* done when the current step is complete; written before next, by the one thread that ends a step */
} team;

int parallel_threads(void)
{
    const int all = omp_get_max_threads();
    return all < MAX_THREADS ? all : MAX_THREADS;
}

/* Goes from a completed step to the first one that has work. */
static void advance(team *t, int64_t step)
{
    while (step < t->steps && t->tasks[step] == 0) step++;
    if (step < t->steps) t->target += t->tasks[step];
    atomic_store_explicit(&t->next, step << STEP_SHIFT, memory_order_release);
}

static void work(team *t, int thread)
{
    enum { SPINS = 2000 };
    int spins = 0;
    for (;;) {
        int64_t next = atomic_load_explicit(&t->next, memory_order_acquire);
        const int64_t step = next >> STEP_SHIFT, task = next & TASK_MASK;
        if (step >= t->steps) return;
        if (task >= t->tasks[step]) {
            if (++spins > SPINS) sched_yield();
            continue;
        }
        if (!atomic_compare_exchange_weak_explicit(&t->next, &next, next + 1, memory_order_acquire, memory_order_relaxed))
            continue;
        spins = 0;
        const int64_t target = t->target;
        t->run(t->user, step, task, thread);
        if (atomic_fetch_add_explicit(&t->done, 1, memory_order_acq_rel) + 1 == target) advance(t, step + 1);
    }
}

void parallel_steps(int threads, int64_t steps, const int64_t *tasks,
                    void (*run)(void *user, int64_t step, int64_t task, int thread), void *user)
{
    team t = {.steps = steps, .tasks = tasks, .run = run, .user = user};
    advance(&t, 0);
    if (threads <= 1) {
        work(&t, 0);
        return;
    }
#pragma omp parallel num_threads(threads)
    work(&t, omp_get_thread_num());
}

#else

int parallel_threads(void) { return 1; }

void parallel_steps(int threads, int64_t steps, const int64_t *tasks,
                    void (*run)(void *user, int64_t step, int64_t task, int thread), void *user)
{
    (void)threads;
    for (int64_t step = 0; step < steps; step++)
        for (int64_t task = 0; task < tasks[step]; task++) run(user, step, task, 0);
}

#endif
