/* pool.h: threads that run jobs, in the order in which they were submitted. */
#ifndef MERA_RUNTIME_POOL_H
#define MERA_RUNTIME_POOL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { POOL_MOST_THREADS = 64 };

typedef struct pool_job {
    struct pool_job *next;
    void (*run)(struct pool_job *job); /* the job may be gone when it returns */
} pool_job;

typedef struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    pool_job *first, *last; /* not begun */
    pthread_t threads[POOL_MOST_THREADS];
    int32_t waiting;           /* jobs not begun */
    int32_t most, count, idle; /* threads: allowed, made, without work */
    bool stopping;
} pool;

/* Threads are made when there is work for them, at most `most` of 1 to POOL_MOST_THREADS. */
void pool_init(pool *p, int32_t most);
/* Waits for jobs that were submitted, then ends the threads. */
void pool_free(pool *p);
/* 0, or an errno: no thread could be made, and the job is not queued. */
int pool_submit(pool *p, pool_job *job);

#endif
