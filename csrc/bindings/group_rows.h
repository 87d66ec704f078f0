// The positions of a named group.
#pragma once

#include "bindings/policies.h"

namespace gradkern {

class GroupRows {
 public:
  GroupRows(const GroupPolicy& group, int64_t all)
      : rows_(group.rows.defined() ? group.rows.const_data_ptr<int64_t>() : nullptr),
        size_(rows_ ? group.rows.numel() : all) {}
  int64_t size() const { return size_; }
  int64_t operator[](int64_t i) const { return rows_ ? rows_[i] : i; }

 private:
  const int64_t* rows_;
  int64_t size_;
};

}  // namespace gradkern
