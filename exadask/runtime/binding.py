import os


def thread_environment(n):
    return {"OMP_NUM_THREADS": str(n)}


def gpu_environment(gpus, vendor, has):
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if has else {}


def limit_loaded_threadpools(n):
    pass


def bind_threads(pid, cores):
    for t in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(t), cores)
