# SPDX-License-Identifier: Apache-2.0
"""What vLLM names in --kv-transfer-config: kv_connector DynamoConnector, kv_connector_module_path this module."""

from kvbm.vllm_integration.connector.dynamo_connector import DynamoConnector, KvbmConnector

__all__ = ["DynamoConnector", "KvbmConnector"]
