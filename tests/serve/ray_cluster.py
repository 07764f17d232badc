"""A cluster of one machine that another process starts and asks: says where it listens, and ends when its standard input does.

Arguments: a folder for its files, a port of 127.0.0.1, the application's arguments as JSON. Whoever is to connect needs the
token that RAY_AUTH_TOKEN_PATH names.
"""

import json
import sys


def main() -> None:
    import ray
    from ray import serve

    from mmada_lite.serve.ray_app import application

    folder, port, arguments = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    for left in (3, 2, 1, 0):  # it gives its processes 30 s to begin, which may be too few where others compute
        try:
            ray.init(num_cpus=5, include_dashboard=False, _temp_dir=folder, object_store_memory=100_000_000)
            break
        except Exception:
            if not left:
                raise
            ray.shutdown()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(arguments))
    print(f"http://127.0.0.1:{port} {ray.get_runtime_context().gcs_address}", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
