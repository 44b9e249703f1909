"""Data sets in an S3 store and behind an HTTP server on this machine."""

import logging
import shutil
import socket
import time

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from test_packed import everything, folder, pack, read

import raybust
from raybust.data import Batches, groups, stores
from raybust.errors import RequestError

KEY, SECRET = "AKIAOFTHETESTS", "a-secret-of-the-tests"


@pytest.fixture(scope="module")
def store():
    """Address of an S3 server with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(store, monkeypatch):
    for key, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store,
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    stores._store.cache_clear()
    client = boto3.client("s3", endpoint_url=store, region_name="us-east-1")
    client.create_bucket(Bucket="pictures")

    def put(source, prefix):
        for path in source.iterdir():
            client.upload_file(str(path), "pictures", f"{prefix}/{path.name}",
                               {"ACL": "public-read"})  # fmt: skip
        return f"s3://pictures/{prefix}"

    put.client = client
    yield put
    stores._store.cache_clear()


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_holds_the_data_set_of_its_files(tmp_path, bucket, form, workers):
    source = pack(form, folder(tmp_path / "folder"), tmp_path / "packed")
    ours, theirs = read(form, bucket(source, form)), read(form, source)
    assert ours.digest == theirs.digest
    assert torch.equal(everything(ours.test)[0], everything(theirs.test)[0])
    options = {"batch_size": 4, "device": "cpu", "seed": 0, "augment": "crop_flip"}
    batches = Batches(ours.train, loader_workers=workers, **options)
    for epoch in range(2):
        expected = Batches(theirs.train, **options).epoch(epoch)
        for mine, his in zip(batches.epoch(epoch), expected, strict=True):
            assert torch.equal(mine[0], his[0])


def test_credentials_are_in_no_file_of_a_run(tmp_path, bucket, capfd):
    """They are nowhere: not in the run, nor in MLflow's store, nor on the screen."""
    source = pack("webdataset", folder(tmp_path / "folder"), tmp_path / "packed")
    run = raybust.train(
        "data.name=webdataset", f"data.path={bucket(source, 'run')}", "data.image_size=8",
        "data.loader_workers=1", "model.width=4", "train.batch_size=4", "train.epochs=1",
        "certified_fast.examples=2", "certified_fast.n=100", name="far", out=tmp_path / "runs",
    )  # fmt: skip
    assert run.config.data.path == "s3://pictures/run"
    said = "".join(capfd.readouterr())
    assert "2 train and 2 test files of s3://pictures/run" in said
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    for secret in (SECRET, KEY):
        assert secret not in said
        assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_files_behind_a_server(tmp_path, bucket, store, form):
    source = pack(form, folder(tmp_path / "folder"), tmp_path / "packed")
    bucket(source, form)
    digits, ending = (3, "tar") if form == "webdataset" else (5, "parquet")
    low, high = "0" * digits, "1".zfill(digits)
    named = {part: f"{part}-{{{low}..{high}}}.{ending}" for part in ("train", "test")}
    data = read(form, f"{store}/pictures/{form}", **named)
    assert data.digest == read(form, source).digest
    with pytest.raises(RequestError, match=r"data\.train: there are no files .*absent"):
        read(form, f"{store}/pictures/{form}", train="absent.tar", test=0.2)


def test_what_a_store_refuses_is_one_line(tmp_path, bucket):
    with pytest.raises(RequestError, match=r"there are no files .* at 's3://pictures/nowhere'"):
        read("parquet", "s3://pictures/nowhere")
    with pytest.raises(RequestError, match=r"there is no bucket 'no-bucket-of-mine'"):
        read("parquet", "s3://no-bucket-of-mine/x")


def test_a_store_that_does_not_answer_is_given_up(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(stores, "_PAUSE_S", 0.01)
    stores._store.cache_clear()
    with pytest.raises(RequestError, match=r"cannot be read 3 times: ") as caught:
        read("parquet", "s3://pictures/x")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_shard_that_changes_in_its_bucket_is_an_error(tmp_path, bucket, monkeypatch, form):
    monkeypatch.setattr(stores, "_CHECKED_S", 0.0)
    source = pack(form, folder(tmp_path / "folder"), tmp_path / "packed")
    data = read(form, bucket(source, f"{form}-changes"))
    everything(data.test)
    time.sleep(1.1)  # the resolution of a store's times
    shutil.rmtree(source)
    other = pack(form, folder(tmp_path / "other", (("train", 9), ("test", 5))), source)
    bucket(other, f"{form}-changes")
    groups._recent.cache_clear()
    with pytest.raises(RequestError, match="has changed since it was listed"):
        everything(data.test)
