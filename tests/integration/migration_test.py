#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether docs/guides/migration.md names what users of Dynamo's block_manager (v1) and kvbm-physical have in their code."""

import pathlib
import re
import unittest

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides" / "migration.md"

# Source: the migration guide of kvbm-physical, its types, then its functions and fields.
NAMES = """
TransportManager TransferManager LayoutHandle PhysicalLayout LayoutConfig TransferOptions TransferCapabilities TransferPreferences
SerializedLayout WorkerAddress TransferCompleteNotification Either EventAwaiter IntoFuture BounceBufferSpec BounceBuffer
LogicalLayoutDescriptor LogicalLayoutHandle KvBlockLayout KvBlocks CudaBlockingH2D CudaBlockingD2H OperationalCopyBackend TransferConfig
CudaMemPool UniversalTP UniversalPP OperationalHND OperationalNHD Custom Unknown
with_external_device_regions num_heads builder worker_id nixl_backend cuda_device_id build_logical_descriptor requires_transform
kvbm_kernels memcpy_batch vectorized_copy cuModuleLoadData context acquire_h2d_stream cuda_stream cuda_pool_reserve_size
cuda_pool_release_threshold aggregate event_system src_kv_layout dst_kv_layout layer_range nixl_write_notification bounce_buffer
from_handle execute_transfer recv await
""".split()
STEPS = 6


class MigrationGuide(unittest.TestCase):
    def setUp(self):
        guide = GUIDE.read_text()
        self.section = guide.split("\n## The physical layer\n")[1].split("\n## ")[0]
        code = re.findall(r"```\w*\n.*?```|`[^`\n]+`", self.section, re.DOTALL)
        self.words = {word for part in code for word in re.findall(r"\w+", part)}

    def test_every_name_is_there(self):
        self.assertEqual([name for name in NAMES if name not in self.words], [])

    def test_what_is_left_out_has_its_reason(self):
        left_out = self.section.split("\nLeft out")[1].split("\n### ")[0]
        rows = [row.strip("| ").split(" | ") for row in left_out.splitlines() if row.startswith("| ")][1:]
        self.assertTrue(all(len(row) == 2 and len(row[1]) > 20 for row in rows), rows)
        names = " ".join(row[0] for row in rows)
        for name in ("CudaBlockingH2D", "CudaBlockingD2H", "OperationalCopyBackend", "bounce buffers"):
            self.assertIn(name, names)

    def test_every_step_has_a_snippet(self):
        steps = re.split(r"\n### (\d)\. ", self.section)[1:]
        self.assertEqual([int(number) for number in steps[::2]], list(range(1, STEPS + 1)))
        for text in steps[1::2]:
            self.assertIn("```cpp\n", text)


if __name__ == "__main__":
    unittest.main()
