"""The project's C interface, called with ctypes.

Structures and functions are taken from the headers that lie beside the library, so that no layout is said twice. What a call refuses is raised as
`Refused`, with the library's message. Handles are destroyed when the last reference to them goes.
"""

import ctypes
import json
import os
import re
import weakref
import zipfile

LOCATION_CUDA = 1  # of aligned_location
TUNING = ("blocks_per_multiprocessor", "tiles_per_split", "most_splits", "chained")  # of a sidecar


class Refused(Exception):
    """Something that can't be done here, and why."""


class Handle:
    """What the library made: a number that C knows it by."""

    def __init__(self, value, destroy):
        self.value = value
        weakref.finalize(self, destroy, value)


class Headers:
    """Declarations of C, of the kind that the headers hold."""

    TYPES = {"int": ctypes.c_int, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64, "float": ctypes.c_float,
             "double": ctypes.c_double, "size_t": ctypes.c_size_t}

    def __init__(self, *paths):
        self.text = re.sub(r"/\*.*?\*/", "", "".join(path.read_text() for path in paths), flags=re.DOTALL)
        self._structures = {}

    def structure(self, name):
        if name not in self._structures:
            body = re.search(rf"typedef struct(?: \w+)? {{([^{{}}]*)}} {name};", self.text)
            if not body:
                raise Refused(f"expected a structure {name} in the headers of the library, found none")
            fields = [field for statement in body[1].split(";") if statement.strip() for field in self._declared(statement)]
            self._structures[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
        return self._structures[name]

    def _declared(self, statement):
        """Names and types of `const void *key, *value` or `int32_t width[4]`."""
        base, declarators = re.fullmatch(r"\s*(?:const )?(\w+)\b\s*(.*)", statement, re.DOTALL).groups()
        for declarator in declarators.split(","):
            pointer, name, extent = re.fullmatch(r"\s*(\**)(\w+)(?:\[(\w+)\])?\s*", declarator).groups()
            kind = ctypes.c_void_p if pointer else self.TYPES.get(base) or self.structure(base)
            yield name, kind * self._extent(extent) if extent else kind

    def _extent(self, text):
        return int(text if text.isdigit() else re.search(rf"#define {text} +(\d+)", self.text)[1])

    def function(self, name):
        """Types of the result and of the parameters."""
        found = re.search(rf"^(?!typedef)([\w ]+?[ *]+){name}\(([^()]*)\);", self.text, re.MULTILINE)
        if not found:
            raise Refused(f"expected a function {name} in the headers of the library, found none")
        result, parameters = found.groups()
        return self._passed(result), [self._passed(each) for each in parameters.split(",") if each.strip() != "void"]

    def _passed(self, text):
        if "*" in text or "[" in text:
            return ctypes.c_char_p if re.match(r"\s*const char \*", text) else ctypes.c_void_p
        return self.TYPES.get(re.sub(r"\bconst\b", "", text).split()[0]) if "void" not in text else None


class Library:
    """The runtime. `library.aligned_...(arguments)` calls a function of the headers; a negative number or null is raised as Refused."""

    def __init__(self, folder):
        self.headers = Headers(*sorted((folder / "include").glob("*.h")))
        try:
            self._c = ctypes.CDLL(os.fspath(folder / "lib/libAlignedCuda.so"))
        except OSError as error:
            raise Refused(f"expected a library that loads here, got: {error}") from None

    def __getattr__(self, name):
        function = getattr(self._c, name)
        function.restype, function.argtypes = self.headers.function(name)

        def call(*arguments):
            result = function(*arguments)
            if function.restype is not None and (result is None or not isinstance(result, bytes) and result < 0):
                raise Refused(self._c_error())
            return result

        setattr(self, name, call)
        return call

    def _c_error(self):
        self._c.aligned_last_error.restype = ctypes.c_char_p
        return (self._c.aligned_last_error() or b"").decode(errors="replace").strip()

    def new(self, structure, **fields):
        return self.headers.structure(structure)(**fields)

    def require_device(self):
        if not self.aligned_cuda_available():
            raise Refused(self._c_error())

    def allocate(self, size):
        return Handle(self.aligned_cuda_allocate(size), self.aligned_cuda_free)

    def event(self):
        return Handle(self.aligned_cuda_event(), self.aligned_cuda_event_destroy)


class Program:
    """PTX and sidecar, loaded: kernels of one attention, made for `chip`."""

    def __init__(self, library, chip, ptx, sidecar):
        self.library, self.chip = library, chip
        self.handle = Handle(library.aligned_program_load(ptx, sidecar), library.aligned_program_destroy)
        self.site = library.new("aligned_program_site")
        library.aligned_program_site_info(self.handle.value, 0, ctypes.byref(self.site))

    def cache(self, format, batch, capacity):
        """An empty cache in device memory; `format` is that of the site's keys or values."""
        value = self.library.aligned_program_create_cache(self.handle.value, ctypes.byref(format), batch, self.site.kv_heads, self.site.key_dim, capacity)
        return Handle(value, self.library.aligned_cache_destroy)

    def append(self, cache, data, count, strides):
        """From device memory, all batch entries alike; strides in elements."""
        self.library.aligned_cuda_cache_append_device(cache.value, data, None, count, (ctypes.c_int64 * 4)(*strides))

    def decode(self, call):
        self.library.aligned_program_decode(self.handle.value, self.site.site, ctypes.byref(call))

    def decode_recorded(self, call):
        """Runs once and gives the bits that it read, an aligned_tally."""
        tallies = (self.library.headers.structure("aligned_tally") * (self.site.site + 1))()
        self.library.aligned_rt_record(tallies, len(tallies))
        try:
            self.decode(call)
        finally:
            self.library.aligned_rt_record(None, 0)
        return tallies[self.site.site]

    def capture(self, calls, tokens=None):
        """A graph of one step over all `calls`; tokens: pairs of device memory that are appended before each."""
        structure = self.library.headers.structure("aligned_step")
        steps = (structure * len(calls))()
        for number, call in enumerate(calls):
            key, value = tokens[number] if tokens else (None, None)
            steps[number] = structure(site=self.site.site, key_data=key, value_data=value, call=call)
        return Handle(self.library.aligned_program_capture(self.handle.value, steps, len(calls)), self.library.aligned_graph_destroy)


class Programs:
    """The archive of programs: CHIP/POLICY-SHAPE/kernels.ptx and kernels.json, and programs.json with what could not be compiled."""

    def __init__(self, library, path):
        self.library, self.archive, self.loaded = library, zipfile.ZipFile(path), {}
        self.names = set(self.archive.namelist())
        self.refusals = json.loads(self.archive.read("programs.json"))["refused"]

    def get(self, policy, shape, tuning=()):
        """Of the newest chip that the device, and its driver, take. `tuning`: names and values that the sidecar gets in the place of its own."""
        wanted = f"{policy}-{shape.name}", tuning
        if wanted not in self.loaded:
            self.loaded[wanted] = self._load(*wanted)
        return self.loaded[wanted]

    def _sidecar(self, folder, tuning):
        sidecar = json.loads(self.archive.read(f"{folder}/kernels.json"))
        if tuning and "tuning" not in sidecar:
            raise Refused("expected a program with tuning in its sidecar, got one that was compiled before there was any")
        if tuning:
            sidecar["tuning"] |= dict(tuning)
        return json.dumps(sidecar).encode()

    def _load(self, wanted, tuning):
        chips = {int(name.split("/")[0].removeprefix("sm_")) for name in self.names if name.split("/")[1:] == [wanted, "kernels.ptx"]}
        if not chips:
            raise Refused(self.refusals.get(wanted, f"expected a program {wanted} in the folder, found none"))
        capability, refusal = self.library.aligned_cuda_compute_capability(), None
        for number in sorted((number for number in chips if number <= capability), reverse=True):
            try:
                folder = f"sm_{number}/{wanted}"
                return Program(self.library, f"sm_{number}", self.archive.read(f"{folder}/kernels.ptx"), self._sidecar(folder, tuning))
            except Refused as error:
                refusal = refusal or error
        raise refusal or Refused(f"no PTX for this chip: expected some for sm_{capability} or older, found {', '.join(f'sm_{n}' for n in sorted(chips))}")
