/* pool.c: see pool.h. */
#include "pool.h"

void pool_init(pool *p, int32_t most)
{
    *p = (pool){.most = most};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
}

static void *work(void *user)
{
    pool *p = user;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->first && !p->stopping) {
            p->idle++;
            pthread_cond_wait(&p->work, &p->lock);
            p->idle--;
        }
        pool_job *job = p->first;
        if (!job) break;
        p->first = job->next;
        p->waiting--;
        if (!p->first) p->last = NULL;
        pthread_mutex_unlock(&p->lock);
        job->run(job);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int pool_submit(pool *p, pool_job *job)
{
    int error = 0;
    pthread_mutex_lock(&p->lock);
    if (p->waiting >= p->idle && p->count < p->most) {
        error = pthread_create(&p->threads[p->count], NULL, work, p);
        if (error == 0) p->count++;
        if (p->count > 0) error = 0; /* those that there are do it */
    }
    if (error == 0) {
        job->next = NULL;
        if (p->last)
            p->last->next = job;
        else
            p->first = job;
        p->last = job;
        p->waiting++;
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    return error;
}

void pool_free(pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int32_t k = 0; k < p->count; k++) pthread_join(p->threads[k], NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
}
