"""Run a Ray cluster of several nodes on this machine, until standard input ends.

Prints a line of JSON: {"dashboard": "http://...", "address": "127.0.0.2:..."}.
"""

import json
import sys

from ray.cluster_utils import Cluster


def main(nodes: int, cores: int, port: int) -> None:
    # Ray replaces 127.0.0.1 by an address that other machines can reach.
    addresses = [f"127.0.0.{number}" for number in range(2, nodes + 2)]
    head = {
        "num_cpus": cores,
        "node_ip_address": addresses[0],
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for address in addresses[1:]:
            cluster.add_node(num_cpus=cores, node_ip_address=address)
        addresses = {
            "dashboard": f"http://127.0.0.1:{port}",
            "address": cluster.address,
        }
        print(json.dumps(addresses), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
