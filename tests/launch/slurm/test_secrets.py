"""Secrets in a cluster file are known by name and by shape; what only resembles one is not."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from launch.slurm import secrets
from tests.launch.slurm.test_cluster import faults

SECRET_NAMES = [
    *("HF_TOKEN", "hf_token", "GITHUB_PAT", "AUTH", "BASIC_AUTH", "AUTH_HEADER", "PASSPHRASE", "HF_KEY", "WANDB_KEY"),
    *(
        "WANDB_API_KEY",
        "APIKEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "SSH_PRIVATE_KEY",
        "DB_PWD",
        "MYSQL_PWD",
    ),
    *("DB_PASS", "PASSWORD", "PGPASSWORD", "DB_PASSWD", "CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_CREDS"),
    *(
        "SLACK_WEBHOOK",
        "WEBHOOK_URL",
        "SENTRY_DSN",
        "COOKIE",
        "SESSION_COOKIE",
        "SESSION",
        "SESSION_ID",
        "JWT",
        "BEARER",
    ),
    *("AZURE_STORAGE_KEY", "NGC_CLI_API_KEY", "CLIENT_SECRET", "OAUTH_TOKEN", "MYSECRET", "ENCRYPTION_KEYS"),
]
INNOCENT_VARIABLES = {
    "HF_HOME": "/scratch/me/huggingface",
    "HF_HUB_OFFLINE": 1,
    "HF_DATASETS_CACHE": "/scratch/me/hf_datasets_2026_with_a_long_name",
    "KEYBOARD": "us",
    "MONKEY": "banana",
    "TOKENIZERS_PARALLELISM": "false",
    "MAX_TOKENS": 4096,
    "HF_TOKEN_PATH": "/home/me/.cache/huggingface/token",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "NCCL_SOCKET_IFNAME": "ib0",
    "NCCL_IB_HCA": "mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1",
    "NCCL_DEBUG_FILE": "/scratch/me/logs/nccl.%h.%p",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:512",
    "CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "LD_LIBRARY_PATH": "/opt/cuda-12.8/lib64:/usr/lib/x86_64-linux-gnu/openmpi4.1.6",
    "OMP_NUM_THREADS": 8,
    "PATTERN": "*.jsonl",
    "COMPASS": "north",
    "XAUTHORITY": "/home/me/.Xauthority",
    "XDG_SESSION_TYPE": "tty",
    "AUTHOR": "me",
    "KEY_VALUE_HEADS": 8,
    "PWD": "/scratch/me",
    "HTTP_PROXY": "http://proxy.example.org:3128",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.org/team/2026",
    "WANDB_PROJECT": "periln-400m-pre-vs-post-vs-peri-2026-11",
    "ENV_FOLDER": "/scratch/me/envs/periln-2026-11-26-cuda12.8-python3.11-torch2.11.0",
    "TITLE": "risk-averse-models-of-language-in-2026",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "SCALE": 1e-30,
    "ARCHITECTURE": "Qwen2ForCausalLMWithPeriLayerNormAndMore",
}
generator = random.Random(0)


def characters(alphabet: str, count: int) -> str:
    return "".join(generator.choices(alphabet, k=count))


ALPHANUMERIC = string.ascii_letters + string.digits
SHAPED = [
    f"hf_{characters(string.ascii_letters, 34)}",
    f"ghp_{characters(ALPHANUMERIC, 36)}",
    f"gho_{characters(ALPHANUMERIC, 36)}",
    f"github_pat_{characters(ALPHANUMERIC, 22)}_{characters(ALPHANUMERIC, 59)}",
    f"glpat-{characters(ALPHANUMERIC, 20)}",
    f"sk-{characters(ALPHANUMERIC, 48)}",
    f"sk-ant-api03-{characters(ALPHANUMERIC, 40)}",
    f"xoxb-{characters(string.digits, 12)}-{characters(ALPHANUMERIC, 24)}",
    f"AKIA{characters(string.ascii_uppercase + string.digits, 16)}",
    f"eyJhbGciOiJIUzI1NiJ9.{characters(ALPHANUMERIC, 40)}.{characters(ALPHANUMERIC, 43)}",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "https://me:hunter2@example.org/simple",
    "postgresql://me:hunter2@db:5432/runs",
    "Bearer abcdefgh",
    f"https://{'hooks.slack.com'}/services/T0/B0",
]
RANDOM = [
    *(characters(string.hexdigits[:16], 40) for _ in range(20)),  # a key of Weights & Biases
    *(characters(ALPHANUMERIC + "+/", 40) for _ in range(20)),
    *(characters(ALPHANUMERIC + "-_", 43) for _ in range(20)),
]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert secrets.find(name, "abc")


@pytest.mark.parametrize("value", SHAPED)
def test_a_secret_is_known_by_its_shape(value: str) -> None:
    assert secrets.find("INNOCENT", value)
    assert secrets.find_in(f"--comment={value}")


@pytest.mark.parametrize("value", RANDOM)
def test_a_random_string_is_a_secret(value: str) -> None:
    assert secrets.find("INNOCENT", value)


@pytest.mark.parametrize(("name", "value"), INNOCENT_VARIABLES.items())
def test_an_innocent_variable_passes(name: str, value: object) -> None:
    assert secrets.find(name, value) is None


@pytest.mark.parametrize(
    "text",
    [
        "--constraint=h100",
        "--mail-user=me@example.org",
        "--nodelist=gpu[001-064]",
        "--gres=gpu:h100:8",
        "--dependency=afterok:123456:+5",
        "--comment=KEY value heads",
        "docker://nvcr.io/nvidia/pytorch:25.10-py3",
        f"docker://nvcr.io/nvidia/pytorch@sha256:{'0123456789abcdef' * 4}",
        "/scratch/me/images/pytorch_25.10-py3-2026-11-26.sif",
        "/scratch/project_465000123/envs:/envs",
        "cuda/12.8.1-gcc-13.2.0-x7f3k2q",
    ],
)
def test_innocent_text_passes(text: str) -> None:
    assert secrets.find_in(text) is None


VALUE = f"ghp_{characters(ALPHANUMERIC, 36)}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("environment: {GITHUB_PAT: VALUE}", "environment.GITHUB_PAT: looks like a secret (its name"),
        ("environment: {PLAIN: VALUE}", "environment.PLAIN: looks like a secret (its value"),
        ("environment: {A: 'x', PLAIN: [VALUE]}", "environment.PLAIN"),
        ("sbatch: ['--comment=VALUE']", "sbatch.0: looks like a secret"),
        ("sbatch: ['--constraint=a', '--comment=HF_TOKEN=abc']", "sbatch.1: looks like a secret (it sets a variable"),
        ("sbatch: ['-C VALUE']", "not a long sbatch option"),
        ("container: 'docker://me:VALUE@example.org/image'", "container: looks like a secret"),
        ("container: x.sif\ncontainer_mounts: ['/VALUE:/x']", "container_mounts.0: looks like a secret"),
        ("venv: /home/me/VALUE", "venv: looks like a secret"),
        ("partition: VALUE!", "partition"),
        ("nodes: VALUE", "nodes"),
        ("unknown: VALUE", "unknown"),
        ("environment: VALUE", "environment"),
    ],
)
def test_a_message_names_the_place_and_never_the_value(tmp_path: Path, text: str, told: str) -> None:
    said = "\n".join(faults(tmp_path, f"time: 60\n{text.replace('VALUE', VALUE)}"))
    assert told in said
    assert VALUE not in said
    assert VALUE[4:] not in said
