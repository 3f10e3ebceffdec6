"""Map the four top-level folders to the import name ``equipoise`` (decision 001 in docs/)."""

from setuptools import find_packages, setup

FOLDERS = ("agent", "policies", "store", "replay")
ITSELF = "replay.package"
"""The folder that becomes ``equipoise`` itself (decision 155)."""

setup(
    packages=[
        "equipoise",
        *(
            f"equipoise.{name}"
            for folder in FOLDERS
            for name in find_packages(".", include=[folder, f"{folder}.*"])
            if name != ITSELF
        ),
    ],
    package_dir={
        "equipoise": ITSELF.replace(".", "/"),
        **{f"equipoise.{folder}": folder for folder in FOLDERS},
    },
    package_data={"": ["py.typed", "**/*.html", "**/*.sql", "**/*.js", "**/*.mjs", "**/*.css"]},
)
