"""Ray settings, set before Ray is first imported; values from the environment take precedence."""

import os

os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_prestart_worker_first_driver": "0",  # processes that Ray Train can't use
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a death is noticed
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # of one wait for free CPUs in a busy cluster
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process; a node that goes is a lost worker
        "AUTOSCALER_METRIC_PORT": "-1",  # this server would accept any host; -1 opens no port
    }
    | os.environ
)
