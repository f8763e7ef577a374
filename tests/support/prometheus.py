"""A real Prometheus that scrapes one daemon every second, with the shipped rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request

from tests.support.lab import REPOSITORY, Lab
from tests.support.servers import free_port

RULES = REPOSITORY / "packaging/prometheus/spliff.rules.yml"


class Prometheus:
    """Started in the lab's folder, outside of its cgroup; ended with the lab."""

    def __init__(self, lab: Lab, scraped: int) -> None:
        folder = lab.folder / "prometheus"
        folder.mkdir()
        shutil.copy(RULES, folder)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            "rule_files: [spliff.rules.yml]\n"
            f"scrape_configs: [{{job_name: spliff, static_configs: [{{targets: ['127.0.0.1:{scraped}']}}]}}]\n"
        )
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=warn"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        lab.processes.append(self.process)

    def get(self, path: str, **parameters: str) -> dict:
        """An answer of the HTTP API; {} while it starts."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return {}
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        except OSError:
            return {}

    def query(self, expression: str) -> list[dict]:
        """The instant vector of an expression."""
        return self.get("query", query=expression).get("result", [])

    def value(self, expression: str) -> float:
        """The one value of an expression; -1 while there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else -1.0
