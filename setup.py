"""The build of the compiled engine, which is optional: reports why it is omitted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def failure() -> str:
    """Return why the compilation failed, as a message."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        return f"the headers of Python are missing ({header}; Debian: python3-dev)"
    return f"the C compiler ({compiler}) failed, see above"


class BuildEngine(build_ext):
    """Build the compiled engine, or report why it is omitted."""

    def build_extension(self, ext: Extension) -> None:
        """Compile, or report why this build has only the pure engine."""
        # The extension is optional: if it fails, the build continues, and must not contain
        # the extension of an earlier build. Cython must not reuse the C code of one either.
        self.force = True
        source = os.path.join(*ext.name.split("."))
        name = self.get_ext_filename(ext.name)
        old = [self.get_ext_fullpath(ext.name), os.path.join(self.build_lib, name), f"{source}.c"]
        if self.editable_mode:  # otherwise the one in the tree is not of this build
            old.append(name)
        for left in old:
            if os.path.exists(left):
                os.remove(left)
        try:
            super().build_extension(ext)
        except Exception:
            sys.stderr.write(
                f"conntrack-textfile: {failure()}: this build has only the pure engine,"
                " which takes many times the CPU time\n"
            )
            raise
        sys.stderr.write("conntrack-textfile: this build has the compiled engine\n")


setup(cmdclass={"build_ext": BuildEngine})
