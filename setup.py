"""The build of the compiled engine, which is optional: without a C compiler it reports why."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def lacking() -> str:
    """Return why the compilation failed."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        return f"the headers of Python are missing ({header}; Debian: python3-dev)"
    return f"the C compiler ({compiler}) failed, see above"


class BuildEngine(build_ext):
    """Build the compiled engine if possible, and report the result."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the engine, or report why this build has the pure engine alone."""
        # The extension is optional: if it fails, the build goes on and would ship the
        # extension of an earlier one. Nor must C code of earlier sources be compiled.
        self.force = True
        source = os.path.join(*ext.name.split("."))
        name = self.get_ext_filename(ext.name)
        old = [self.get_ext_fullpath(ext.name), os.path.join(self.build_lib, name), f"{source}.c"]
        if self.editable_mode:  # the extension in the tree is then the installed one
            old.append(name)
        for left in old:
            if os.path.exists(left):
                os.remove(left)
        try:
            super().build_extension(ext)
        except Exception:
            sys.stderr.write(
                f"conntrack-textfile: {lacking()}: this build has the pure engine alone,"
                " which takes many times the CPU time\n"
            )
            raise
        sys.stderr.write("conntrack-textfile: this build has the compiled engine\n")


setup(cmdclass={"build_ext": BuildEngine})
