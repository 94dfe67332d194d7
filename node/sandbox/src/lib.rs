//! The walls around each program of a node, and casemate-launch.

