"""What the GPU's figures are made of: the model's arithmetic on a case that is done by hand, and how counts find a kernel's hottest loop."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks/gpu")]
import count_kernels  # noqa: E402
import model  # noqa: E402

DEVICE = model.Device("Some", bandwidth=2.0, multiprocessors=100, clock=1.5)  # 2e6 bytes and, of all, 600e3 instructions in a microsecond
ASSUMED = model.Assumptions(bandwidth=0.5, issue=0.5, launch=4.0)  # 1e6 and 300e3
PARTS = {
    "scan": {"tile": {"instructions": 100, "read": 3000, "written": 1000}, "block": {"instructions": 2000, "read": 0, "written": 0},
             "row": {"instructions": 500, "read": 500, "written": 500}},
    "attend": {"tile": {"instructions": 3000, "read": 500, "written": 0}, "block": {"instructions": 6000, "read": 0, "written": 0},
               "idle": {"instructions": 1e9, "read": 1e9, "written": 1e9}},
}


def test_a_step_by_hand():
    """8 rows of 128 tiles. 25 splits make 200 blocks of threads, one for each of 2 x 100 places."""
    assert model.splits_of(8, 128, 100) == 25
    scan = (1024 * 4000 + 8 * 1000) / 1e6  # longer than (1024 * 100 + 200 * 2000 + 8 * 500) / 300e3
    attend = (1024 * 3000 + 200 * 6000) / 300e3  # longer than 1024 * 500 / 1e6
    step = model.step_time(DEVICE, ASSUMED, PARTS, {}, 1, 8192)
    assert step == model.Time(bytes=pytest.approx(scan), issue=pytest.approx(attend), launches=8.0)
    assert step.all == pytest.approx(4.104 + 14.24 + 8) and step.bound == "issue"


def test_instructions_of_the_machine():
    step = model.step_time(DEVICE, ASSUMED, PARTS, {"attend": {"ptx": [200, 8], "sass": [300, 16]}}, 1, 8192)  # unrolled once
    assert step.issue == pytest.approx(14.24 * 0.75)


def test_few_blocks_leave_multiprocessors_idle():
    assert model.splits_of(8, 1, 100) == 1
    busy = model.kernel_time(DEVICE, ASSUMED, 0, 300e3, 100)
    assert busy.issue == pytest.approx(1.0)
    assert model.kernel_time(DEVICE, ASSUMED, 0, 300e3, 8).issue == pytest.approx(12.5)
    assert model.kernel_time(DEVICE, ASSUMED, 0, 300e3, 1000) == busy


@pytest.mark.parametrize("width, microseconds", [(2, 33.554432), (1, 16.777216)])
def test_dense(width, microseconds):
    """4 * 64 * 128 bytes of each of 1024 tiles in 16 bits."""
    time = model.dense_time(DEVICE, ASSUMED, 128, 1, 8192, width)
    assert time == model.Time(bytes=pytest.approx(microseconds), launches=8.0) and time.bound == "bytes"


@pytest.mark.parametrize("rows, tiles, expected", [(8, 2048, 33), (8, 16, 4), (64, 512, 4), (256, 512, 1), (1024, 2048, 1)])
def test_splits(rows, tiles, expected):
    """Waves of 264 blocks: 33 splits of 8 rows fill one; of 16 tiles there are four splits at most."""
    assert model.splits_of(rows, tiles, 132) == expected


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "benchmarks/gpu/model.py", *arguments], capture_output=True, text=True)


def test_page(tmp_path):
    counts = {"chip": "sm_90", "head_dim": 128, "query_rows": 4, "tokens": 4081, "programs": {"balanced": PARTS}, "loops": {}}
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(counts))
    said = run(path, "--launch", "2")
    assert said.returncode == 0, said.stderr
    assert "90% of the bandwidth, 80% of 4 instructions a cycle, 2 us a launch; counts of a tile as at 4081 tokens" in said.stdout
    assert said.stdout.count("   32 x  128k") == len(model.DEVICES)
    path.write_text(json.dumps(counts | {"query_rows": 8}))
    assert "counts.json: expected counts of 4 query rows, got 8" in run(path).stderr
    path.write_text("{}")
    assert "counts.json: expected what count_kernels.py --json writes, found no 'chip'" in run(path).stderr
    assert "nowhere.json: expected what count_kernels.py --json writes, got: " in run(tmp_path / "nowhere.json").stderr
    assert run(path, "--issue", "0").returncode == 2
    path.write_text(json.dumps(counts))
    assert "expected programs of balanced, got tight" in run(path, "--programs", "tight").stderr


PTX = """.visible .entry decode0_scan(
	.param .u64 decode0_scan_param_0
)
{
	mov.u32 	%r1, 0;
$L__BB0_1:
	add.s32 	%r1, %r1, 1;
	@%p1 bra 	$L__BB0_1;
$L__BB0_2:
	@%p2 bra 	$L__BB0_3;
	mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 	{%r2, %r3}, {%r4},
 {%r5}, {%r6};
$L__BB0_3:
	@%p3 bra.uni 	$L__BB0_2;
	bra.uni 	$L__BB0_2;
	ret;
}
"""
NVDISASM = """.text.decode0_scan:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   IMMA.16832.U8.S8 R8, R4.ROW, R6.COL, R8 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   EXIT ;
.L_x_3:
        /*0040*/                   BRA `(.L_x_3);
"""
CUOBJDUMP = """		Function : decode0_scan
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
        /*0010*/                   IMMA.16832.U8.S8 R8, R4.ROW, R6.COL, R8 ;
        /*0020*/              @!P0 BRA 0x10 ;
        /*0030*/                   BRA 0x30;
"""


@pytest.mark.parametrize("functions, text, length", [(count_kernels.functions_of_ptx, PTX, 4), (count_kernels.functions_of_sass, NVDISASM, 2),
                                                     (count_kernels.functions_of_sass, CUOBJDUMP, 2)], ids=["ptx", "nvdisasm", "cuobjdump"])
def test_the_hottest_loop(functions, text, length):
    """From its first label to its last branch back; loops without products are not it."""
    ((name, code),) = functions(text)
    assert name == "decode0_scan" and count_kernels.hottest_loop(code) == (length, 1)
