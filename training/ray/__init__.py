"""Ray settings, set before Ray is first imported; values from the environment take precedence."""

import os

os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_prestart_worker_first_driver": "0",  # Ray Train cannot use these processes
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # delay until an end or a death is noticed
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # per attempt to get CPUs of a busy cluster
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an extra process; a lost worker is noticed anyway
        "AUTOSCALER_METRIC_PORT": "-1",  # this server would accept connections from any host; -1 disables it
    }
    | os.environ
)
